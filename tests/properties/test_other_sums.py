"""``--other-sums``: the same bits for the same shapes, others for other shapes, and nothing to what is exact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import torch
from torch import nn
from tests.helpers.other_sums import disturb

x, image = torch.rand(8, 64), torch.rand(8, 4, 9, 9)
dense, conv = nn.Linear(64, 32), nn.Conv2d(4, 8, 3)
before, random = dense(x), torch.get_rng_state()
disturb()
for layer, of in ((dense, x), (conv, image), (torch.exp, x), (lambda x: x.sum(-1), x)):
    whole, again, part = layer(of), layer(of), layer(of[:4])
    assert torch.equal(whole, again)
    assert not torch.equal(whole[:4], part)
    torch.testing.assert_close(whole[:4], part)
    with torch.inference_mode():
        assert torch.equal(layer(of), whole)
assert not torch.equal(before, dense(x))
assert torch.equal(torch.ones(3, 5) @ torch.ones(5, 2), torch.full((3, 2), 5.0))
assert torch.equal(random, torch.get_rng_state())
gradients = [torch.autograd.grad(dense(x).square().sum(), dense.weight)[0] for _ in range(2)]
assert torch.equal(*gradients)
few, many = dense.bfloat16()(x[:4].bfloat16()), dense(x.bfloat16()).clone()
torch.testing.assert_close(few, many[:4])
"""


@pytest.mark.slow
def test_last_bits_follow_the_shapes() -> None:
    """In a process of its own: the kernels of this one stay torch's."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert probe.returncode == 0, probe.stderr
