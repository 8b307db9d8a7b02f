"""One observation to one feature vector: ``[N, *O]`` to ``[N, features]``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

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
            layers += [orthogonal(nn.Linear(width_in, width_out)), ACTIVATIONS[spec.activation]()]
        super().__init__(*layers)
        self.features = widths[-1]


class ReLU(nn.Module):
    """max(x, 0). In bf16 it takes the place of x, by the bits: a negative number's are those of a negative integer.

    torch's widens, compares and rounds. A NaN whose sign is set becomes 0 here: only infinite activations make one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x is a layer's output and nobody else's."""
        if x.dtype != torch.bfloat16:
            return torch.relu(x)
        return cast("Tensor", InPlace.apply(x))  # type: ignore[no-untyped-call]


class InPlace(torch.autograd.Function):
    """max(x, 0) in place of x, of bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same memory."""
        ctx.mark_dirty(x)
        x.view(torch.int16).clamp_min_(0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """0 where the output is."""
        (y,) = ctx.saved_tensors
        of_x: Tensor = torch.ops.aten.threshold_backward(gradient, y, 0)
        return of_x


class Convolution(NamedTuple):
    """One convolution, its activation, and where `pool` is above 1 the maximum over squares of that side."""

    filters: int
    kernel: int
    stride: int
    padding: int = 0
    pool: int = 1


class Architecture(NamedTuple):
    """Convolutions, then one dense layer or none."""

    convolutions: tuple[Convolution, ...]
    dense: int | None
    activation: type[nn.Module] = ReLU


class CNN(nn.Sequential):
    """An architecture on ``[N, C, H, W]``."""

    def __init__(self, shape: tuple[int, ...], architecture: Architecture) -> None:
        convolutions, dense, activation = architecture
        layers: list[nn.Module] = []
        channels = shape[0]
        for filters, kernel, stride, padding, pool in convolutions:
            layers += [orthogonal(nn.Conv2d(channels, filters, kernel, stride, padding)), activation()]
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
            channels = filters
        layers.append(Pixels())
        with torch.no_grad():
            flat: int = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
        if dense is not None:
            layers += [orthogonal(nn.Linear(flat, dense)), activation()]
        super().__init__(*layers)
        self.features = flat if dense is None else dense

    def forward(self, x: Tensor, outputs: Sequence[Tensor] | None = None, *, known: bool = False) -> Tensor:
        """Features ``[N, F]`` of ``x [N, C, H, W]``.

        Args:
            x: images.
            outputs: of each layer that has weights, to be kept here, or ...
            known: ... kept here before, of the same images at the same parameters. Gradients agree up to rounding.
        """
        kept = iter(outputs or ())
        for layer in self:
            if outputs is None or not isinstance(layer, WEIGHTED):
                x = layer(x)
            elif known:
                x = Known.apply(x, layer, layer.weight, layer.bias, next(kept))  # type: ignore[no-untyped-call]
            else:
                x = next(kept).copy_(layer(x))
        return x

    def blank_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Memory for `forward` to keep outputs of so many images in."""
        outputs: list[Tensor] = []
        x = images[:1]
        for layer in self:
            x = layer(x)
            if isinstance(layer, WEIGHTED):
                layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
                outputs.append(torch.empty((len(images), *x.shape[1:]), dtype=x.dtype, memory_format=layout))
        return tuple(outputs)


class Pixels(nn.Module):
    """``[N, C, H, W]`` to ``[N, H·W·C]``, pixel by pixel: no copy either way where channels are last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Its rows."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Known(torch.autograd.Function):
    """A layer whose output is known: only its gradients are computed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor, output: Tensor
    ) -> Tensor:
        """The output."""
        ctx.layer = layer
        ctx.save_for_backward(x, weight)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """What autograd would call for the layer itself."""
        x, weight = ctx.saved_tensors
        own, wanted = ctx.layer, [*ctx.needs_input_grad[:1], *ctx.needs_input_grad[2:4]]
        if isinstance(own, nn.Linear):
            return gradient @ weight, None, gradient.T @ x, gradient.sum(0), None
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], own.stride, own.padding, own.dilation, False, [0, 0], own.groups, wanted
        )
        return of_x, None, of_weight, of_bias, None


WEIGHTED = (nn.Conv2d, nn.Linear)

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU}

_A3C = (Convolution(16, 8, 4), Convolution(32, 4, 2))
_NATURE = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))

CNNS: dict[str, Architecture] = {
    "a3c-cnn": Architecture(_A3C, 256),  # Mnih et al. 2013 and 2016
    "a3c-conv": Architecture(_A3C, None),
    "nature-cnn": Architecture(_NATURE, 512),  # Mnih et al. 2015
    "nature-conv": Architecture(_NATURE, None),
    "nature-cnn-32": Architecture((*_NATURE[:2], Convolution(32, 3, 1)), 512),  # pytorch-a2c-ppo-acktr-gail
    "elu-conv": Architecture((Convolution(32, 3, 2, 1),) * 4, None, nn.ELU),  # pytorch-a3c; meant for 42 x 42
    "pool-conv": Architecture(  # rl_a3c_pytorch; meant for 80 x 80
        (
            Convolution(32, 5, 1, 2, 2),
            Convolution(32, 5, 1, 1, 2),
            Convolution(64, 4, 1, 1, 2),
            Convolution(64, 3, 1, 1, 2),
        ),
        None,
    ),
}
"""By the name a spec gives them."""


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
    return CNN(channels_first(shape), CNNS[name])


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(C, H, W)`` of an image in either order; a last axis of at most 4 is taken for the channels."""
    return shape if shape[-1] > 4 else (shape[-1], *shape[:-1])


def to_channels_last(images: Tensor) -> Tensor:
    """``[N, C, H, W]`` bytes with their channels last in memory.

    Four channels make a word of four bytes: twice as fast as to place bytes one by one.
    """
    if images.shape[1] != 4 or sys.byteorder != "little" or not images.is_contiguous():
        return images.contiguous(memory_format=torch.channels_last)
    first, *others = images.to(torch.int32).unbind(1)
    for i, channel in enumerate(others, start=1):
        first.add_(channel, alpha=1 << 8 * i)
    return first.unsqueeze(-1).contiguous().view(torch.uint8).permute(0, 3, 1, 2)


def to_channels_first(images: Tensor) -> Tensor:
    """``[N, H, W, C]`` or ``[N, C, H, W]`` to the latter, a view."""
    return images if images.shape[-1] > 4 else images.permute(0, 3, 1, 2)
