"""Layers of our own against torch's, and what torsos take for an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional

from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.encoders import CNN, CNNS, MLP, ReLU, flattening, make_torso, smallest_side
from polyactor.models.spec import ModelSpec


def boxes(shape: tuple[int, ...], dtype: torch.dtype) -> spaces.Box:
    """A space of observations of this shape and dtype."""
    return spaces.Box(0, 255, shape, np.uint8 if dtype == torch.uint8 else np.float32)


def bytes_of(shape: tuple[int, ...]) -> spaces.Box:
    """A space of bytes."""
    return boxes(shape, torch.uint8)


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


def test_relu_that_keeps_its_input_overwrites_a_copy() -> None:
    x = torch.tensor([-1.0, 2.0]).bfloat16()
    assert ReLU(overwrites=False)(x).tolist() == [0, 2]
    assert x.tolist() == [-1, 2]


def in_the_papers_words(cnn: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Fig. 3 of Espeholt et al. 2018, on the left, with the parameters of a torso, in their order."""
    parameters = iter(cnn.parameters())

    def conv(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, next(parameters), next(parameters), padding=1)

    for _ in range(3):
        x = functional.max_pool2d(conv(x), 3, 2, 1)
        for _ in range(2):
            x = x + conv(functional.relu(conv(functional.relu(x))))
    flat = functional.relu(x).permute(0, 2, 3, 1).flatten(1)
    return functional.relu(functional.linear(flat, next(parameters), next(parameters)))


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((4, 84, 84), 1_089_232),  # 97,744 of 15 convolutions, and 256 units of 11 · 11 · 32 numbers
        ((3, 72, 96), 982_592),  # with their LSTMs for actions and words 1.6 million, as the paper says
        ((3, 64, 64), 622_144),
        ((1, 20, 20), None),
    ],
)
def test_the_residual_cnn_is_the_papers(shape: tuple[int, ...], parameters: int | None) -> None:
    torch.manual_seed(0)
    torso = make_torso(bytes_of(shape), ModelSpec(torso="impala-cnn", channels="first"))
    assert isinstance(torso, CNN)
    channels = [each.out_channels for each in torso.modules() if isinstance(each, nn.Conv2d)]
    assert channels == [16] * 5 + [32] * 10
    if parameters is not None:
        assert sum(each.numel() for each in torso.parameters()) == parameters
        return
    x = torch.randn(2, *shape)
    found, expected = torso(x), in_the_papers_words(torso, x)
    assert found.shape == (2, 256)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), list(torso.parameters())) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


IMAGE = torch.uint8


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((4, 84, 84), 4),
        ((84, 84, 4), 4),
        ((96, 96, 24), 24),
        ((24, 96, 96), 24),
        ((72, 96, 16), 16),
        ((64, 200, 32), 32),
        ((1, 44, 44), 1),
        ((20, 20, 3), 3),
        ((5, 84, 84), 5),
        ((84, 84, 5), 5),
    ],
)
def test_channels_are_the_smaller_of_the_first_and_the_last_axis(shape: tuple[int, ...], channels: int) -> None:
    torso = make_torso(bytes_of(shape), ModelSpec())
    assert isinstance(torso[0], torch.nn.Conv2d)
    assert torso[0].in_channels == channels
    space = spaces.Box(0, 255, shape, np.uint8)
    model = ActorCritic(space, spaces.Discrete(2), ModelSpec(), normalize_observation=True)
    images = torch.randint(256, (2, *shape), dtype=IMAGE)
    by_hand = images if shape[0] == channels else images.permute(0, 3, 1, 2)
    torch.testing.assert_close(model.prepared(images), by_hand / 255)


@pytest.mark.fault("D13")
def test_channels_that_cannot_be_told_are_asked_for() -> None:
    shape = (36, 84, 40)
    with pytest.raises(UsageError, match=r"--model.channels auto is not allowed .*\(36, 84, 40\).* use first or last"):
        make_torso(bytes_of(shape), ModelSpec())
    for channels, count in (("first", 36), ("last", 40), ("last-up-to-4", 36)):
        torso = make_torso(bytes_of(shape), ModelSpec(channels=channels))  # type: ignore[arg-type]
        assert torso[0].in_channels == count  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CNNS)
def test_the_smallest_image_of_a_cnn_is_the_smallest(name: Any) -> None:
    side, spec = smallest_side(CNNS[name]), ModelSpec(torso=name, channels="first")
    assert make_torso(bytes_of((3, side, side)), spec).features > 0
    with pytest.raises((UsageError, RuntimeError)):
        make_torso(bytes_of((3, side - 1, side)), spec)
    if side > 1:
        with pytest.raises(UsageError, match=f"it needs {side} x {side}; use mlp"):
            make_torso(bytes_of((3, side, side - 1)), spec)


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("shape", "dtype", "hidden", "words"),
    [
        ((84, 84), IMAGE, [], "of shape (84, 84) are"),
        ((4, 84, 84, 1), IMAGE, [], "of shape (4, 84, 84, 1) are"),
        ((64, 64, 3), torch.float32, [], "of shape (64, 64, 3) are"),
        ((7, 7, 3), IMAGE, [], "of shape (7, 7, 3) are"),
        ((151,), torch.float32, [(7, 7, 3)], "with parts of shape (7, 7, 3) are"),
    ],
)
def test_pictures_that_an_mlp_reads_are_told(shape: Any, dtype: Any, hidden: Any, words: str) -> None:
    assert isinstance(make_torso(boxes(shape, dtype), ModelSpec()), MLP)
    assert words in str(flattening(shape, dtype, ModelSpec(), hidden))
    assert flattening(shape, dtype, ModelSpec(torso="mlp"), hidden) is None  # asked for


def test_of_vectors_and_images_nothing_is_told() -> None:
    assert flattening((128,), IMAGE, ModelSpec(), []) is None
    assert flattening((4, 84, 84), IMAGE, ModelSpec(), []) is None
