"""One observation to one feature vector: ``[N, *O]`` to ``[N, features]``."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from polyactor.models.spec import ModelSpec

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def orthogonal(layer: Layer, gain: float = math.sqrt(2)) -> Layer:
    """Orthogonal weights with this gain, zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Fully connected layers on the flattened observation."""

    def __init__(self, shape: tuple[int, ...], spec: ModelSpec) -> None:
        widths = (math.prod(shape), *spec.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [
                orthogonal(nn.Linear(width_in, width_out)),
                nn.Tanh() if spec.activation == "tanh" else nn.ReLU(),
            ]
        super().__init__(*layers)
        self.features = widths[-1]


class CNN(nn.Sequential):
    """Convolutions and one fully connected layer on ``[N, C, H, W]``, ReLU after each."""

    def __init__(self, shape: tuple[int, ...], convolutions: tuple[tuple[int, int, int], ...], features: int) -> None:
        layers: list[nn.Module] = []
        channels = shape[0]
        for filters, kernel, stride in convolutions:
            layers += [orthogonal(nn.Conv2d(channels, filters, kernel, stride)), nn.ReLU()]
            channels = filters
        layers.append(nn.Flatten())
        with torch.no_grad():
            flat = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
        super().__init__(*layers, orthogonal(nn.Linear(flat, features)), nn.ReLU())
        self.features = features


CONVOLUTIONS: dict[str, tuple[tuple[tuple[int, int, int], ...], int]] = {
    "a3c-cnn": (((16, 8, 4), (32, 4, 2)), 256),
    "nature-cnn": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),
}
"""(filters, kernel, stride) of each convolution, and the width after them: Mnih et al. 2016, Mnih et al. 2015."""


def is_image(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """An observation of bytes with three axes is an image."""
    return dtype == torch.uint8 and len(shape) == 3


def make_torso(shape: tuple[int, ...], dtype: torch.dtype, spec: ModelSpec) -> MLP | CNN:
    """The torso a spec names for observations of this shape.

    Raises:
        ValueError: a CNN was asked for and the observation is no image.
    """
    image = is_image(shape, dtype)
    name = ("a3c-cnn" if image else "mlp") if spec.torso == "auto" else spec.torso
    if name == "mlp":
        return MLP(shape, spec)
    if not image:
        raise ValueError(f"the {name} torso needs images (uint8, three axes), not observations of shape {shape}")
    return CNN(channels_first(shape), *CONVOLUTIONS[name])


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(C, H, W)`` of an image in either order; a last axis of at most 4 is taken for the channels."""
    return shape if shape[-1] > 4 else (shape[-1], *shape[:-1])


def to_channels_first(images: Tensor) -> Tensor:
    """``[N, H, W, C]`` or ``[N, C, H, W]`` to the latter, a view."""
    return images if images.shape[-1] > 4 else images.permute(0, 3, 1, 2)
