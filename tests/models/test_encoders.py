"""Layers of our own against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyactor.models.encoders import ReLU


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_relu_and_its_gradient_are_torchs(dtype: torch.dtype, layout: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6).to(dtype).to(memory_format=layout)
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    weight = torch.randn(x.shape).to(dtype).to(memory_format=layout)
    found = []
    for relu in (ReLU(), torch.nn.ReLU()):
        leaf = x.clone().requires_grad_()
        y = relu(leaf * 1)  # a layer's output and nobody else's
        (gradient,) = torch.autograd.grad((y * weight).sum(), leaf)
        found.append((y.detach(), gradient))
    (ours, of_ours), (theirs, of_theirs) = found
    assert torch.equal(ours, theirs)
    assert torch.equal(of_ours, of_theirs)
    assert ours.dtype == dtype
    assert (of_theirs == 0).any()


def test_relu_of_bf16_takes_no_memory_of_its_own() -> None:
    x = torch.randn(8).bfloat16()
    assert ReLU()(x).data_ptr() == x.data_ptr()
