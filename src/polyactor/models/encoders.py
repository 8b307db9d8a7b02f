"""Torsos, which encode each observation by itself: ``[N, *O]`` to features ``[N, F]``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.errors import UsageError
from polyactor.models.noisy import NOISY, NoisyLinear
from polyactor.models.norms import weights
from polyactor.models.spec import Channels, ModelSpec, NoiseKind

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def orthogonal(layer: Layer, gain: float = math.sqrt(2)) -> Layer:
    """Initialise a layer with orthogonal weights of this gain and zero bias, and return it."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def dense(inputs: int, outputs: int, noise: NoiseKind | None, gain: float = math.sqrt(2)) -> nn.Linear | NoisyLinear:
    """Make a fully connected layer: a noisy one of this kind, or an orthogonal one of this gain where it is None."""
    return orthogonal(nn.Linear(inputs, outputs), gain) if noise is None else NOISY[noise](inputs, outputs)


def hidden_layer(
    inputs: int, outputs: int, activation: type[nn.Module], spec: ModelSpec, noise: NoiseKind | None
) -> list[nn.Module]:
    """Make a hidden layer: its weights, layer norm (Ba et al. 2016) if the spec has it, and the activation."""
    norm = [nn.LayerNorm(outputs)] if spec.norm == "layer" else []
    return [dense(inputs, outputs, noise), *norm, activation()]


class MLP(nn.Sequential):
    """A torso of fully connected layers on the flattened observation."""

    def __init__(self, shape: tuple[int, ...], spec: ModelSpec) -> None:
        widths = (math.prod(shape), *spec.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += hidden_layer(width_in, width_out, ACTIVATIONS[spec.activation], spec, spec.torso_noise)
        super().__init__(*layers)
        self.features = widths[-1]


class ReLU(nn.Module):
    """max(x, 0), in bf16 computed in place on the bits: as int16, negative numbers are negative, too.

    torch's bf16 ReLU is slower, since it converts to float32 and back. A NaN with a negative sign becomes 0 here, but
    only infinite activations give NaNs.

    Args:
        overwrites: whether x is overwritten in bf16, so that nothing else may use it; otherwise a copy of it is.
    """

    def __init__(self, *, overwrites: bool = True) -> None:
        super().__init__()
        self.overwrites = overwrites

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        if x.dtype != torch.bfloat16:
            return torch.relu(x)
        return cast("Tensor", InPlace.apply(x if self.overwrites else x.clone()))  # type: ignore[no-untyped-call]


class InPlace(torch.autograd.Function):
    """The bf16 ReLU of `ReLU`, which overwrites its input, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Overwrite x with max(x, 0) and return it."""
        ctx.mark_dirty(x)
        x.view(torch.int16).clamp_min_(0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient by x, which is 0 where the output is 0."""
        (y,) = ctx.saved_tensors
        of_x: Tensor = torch.ops.aten.threshold_backward(gradient, y, 0)
        return of_x


class Convolution(NamedTuple):
    """The sizes of one convolution; `pool` above 1 adds max-pooling over squares of that side after the activation."""

    filters: int
    kernel: int
    stride: int
    padding: int = 0
    pool: int = 1

    def layers(self, channels: int, activation: type[nn.Module]) -> list[nn.Module]:
        """Make the layers, for images of so many channels."""
        convolution = orthogonal(nn.Conv2d(channels, self.filters, self.kernel, self.stride, self.padding))
        return [convolution, activation(), *([nn.MaxPool2d(self.pool)] if self.pool > 1 else [])]

    def least(self, side: int) -> int:
        """Return the least side of images of which those that come out have this side, in pixels."""
        return (side * self.pool - 1) * self.stride + self.kernel - 2 * self.padding


class Stage(NamedTuple):
    """A convolution 3 × 3, the maximum of 3 × 3 in steps of 2, and residual blocks (Espeholt et al. 2018, fig. 3)."""

    filters: int
    blocks: int = 2

    def layers(self, channels: int, activation: type[nn.Module]) -> list[nn.Module]:
        """Make the layers, for images of so many channels; the blocks' activation is a ReLU.

        The gain is 1 as in their code (a variance of 1/fan-in), since sums grow from block to block.
        """

        def convolution(channels: int) -> nn.Conv2d:
            return orthogonal(nn.Conv2d(channels, self.filters, 3, 1, 1), 1.0)

        blocks = [
            Residual(ReLU(overwrites=False), convolution(self.filters), ReLU(), convolution(self.filters))
            for _ in range(self.blocks)
        ]
        return [convolution(channels), nn.MaxPool2d(3, 2, 1), *blocks]

    def least(self, side: int) -> int:
        """Return the least side of images of which those that come out have this side, in pixels."""
        return 2 * side - 1


class Residual(nn.Sequential):
    """A residual block, x + f(x); f is what its layers compute."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, of the shape of x."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y


class Architecture(NamedTuple):
    """The layers of a CNN: convolutions or stages of them, then a dense layer with `dense` units, or none."""

    convolutions: tuple[Convolution | Stage, ...]
    dense: int | None
    activation: type[nn.Module] = ReLU


class CNN(nn.Sequential):
    """A convolutional torso of a given architecture, for images ``[N, C, H, W]``."""

    def __init__(self, shape: tuple[int, ...], architecture: Architecture, spec: ModelSpec) -> None:
        convolutions, units, activation = architecture
        layers: list[nn.Module] = []
        channels = shape[0]
        for each in convolutions:
            layers += each.layers(channels, activation)
            channels = each.filters
        layers += [activation()] if isinstance(convolutions[-1], Stage) else []  # which ends with a sum
        layers.append(Pixels())
        with torch.no_grad():
            flat: int = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
        if units is not None:
            layers += hidden_layer(flat, units, activation, spec, spec.torso_noise)
        super().__init__(*layers)
        self.features = flat if units is None else units

    def forward(self, x: Tensor, outputs: Sequence[Tensor] | None = None, *, known: bool = False) -> Tensor:
        """Compute features ``[N, F]``, and write or reuse the outputs of layers with weights.

        Args:
            x: images ``[N, C, H, W]``.
            outputs: one tensor for the output of each layer with weights, or None.
            known: whether `outputs` hold the outputs for the same images and parameters already, which are then used
                instead of computing them; gradients agree up to rounding. Otherwise they are written.
        """
        if outputs is None:
            return cast("Tensor", super().forward(x))  # type: ignore[no-untyped-call]
        kept = iter(outputs)

        def reuse(layer: Weighted, x: Tensor) -> Tensor:
            output: Tensor = Known.apply(x, layer, weights(layer), layer.bias, next(kept))  # type: ignore[no-untyped-call]
            return output

        return through(self, x, reuse if known else lambda layer, x: next(kept).copy_(layer(x)))

    def blank_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Allocate the `outputs` of `forward` for as many images as `images` has."""
        outputs: list[Tensor] = []

        def allocate(layer: Weighted, x: Tensor) -> Tensor:
            one: Tensor = layer(x)
            layout = torch.channels_last if one.dim() == 4 else torch.contiguous_format
            outputs.append(torch.empty((len(images), *one.shape[1:]), dtype=one.dtype, memory_format=layout))
            return one

        through(self, images[:1], allocate)
        return tuple(outputs)


def through(layers: Iterable[nn.Module], x: Tensor, compute: Callable[[Weighted, Tensor], Tensor]) -> Tensor:
    """Pass x through layers, those with weights by `compute`, called with the layer and its input."""
    for layer in layers:
        if isinstance(layer, Residual):
            x = x + through(layer, x, compute)
        else:
            x = compute(layer, x) if isinstance(layer, WEIGHTED) else layer(x)
    return x


class Pixels(nn.Module):
    """Flattens ``[N, C, H, W]`` to ``[N, H·W·C]``, which needs no copy where channels are last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x [N, C, H, W]`` as ``[N, H·W·C]``."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Known(torch.autograd.Function):
    """A layer whose output was computed before, so that only its gradients are computed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor, output: Tensor
    ) -> Tensor:
        """Return the known output of the layer."""
        ctx.layer = layer
        ctx.save_for_backward(x, weight)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by x, weight and bias, as autograd computes them for the layer."""
        x, weight = ctx.saved_tensors
        own, wanted = ctx.layer, [*ctx.needs_input_grad[:1], *ctx.needs_input_grad[2:4]]
        if isinstance(own, nn.Linear):
            return gradient @ weight, None, gradient.T @ x, gradient.sum(0), None
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], own.stride, own.padding, own.dilation, False, [0, 0], own.groups, wanted
        )
        return of_x, None, of_weight, of_bias, None


Weighted = nn.Conv2d | nn.Linear
WEIGHTED = (nn.Conv2d, nn.Linear)
"""Classes of the layers whose outputs are kept; those of noisy layers are computed again."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU}

_A3C = (Convolution(16, 8, 4), Convolution(32, 4, 2))
_NATURE = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))

CNNS: dict[str, Architecture] = {
    "a3c-cnn": Architecture(_A3C, 256),  # Mnih et al. 2013 and 2016
    "a3c-conv": Architecture(_A3C, None),
    "nature-cnn": Architecture(_NATURE, 512),  # Mnih et al. 2015
    "nature-conv": Architecture(_NATURE, None),
    "nature-cnn-32": Architecture((*_NATURE[:2], Convolution(32, 3, 1)), 512),  # pytorch-a2c-ppo-acktr-gail
    "impala-cnn": Architecture((Stage(16), Stage(32), Stage(32)), 256),  # Espeholt et al. 2018, the deep one
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
"""The CNN torsos by their names in `ModelSpec.torso`."""
JOINED_UNITS = 256
"""Units of the layer that joins the features of images and of the other entries of an observation."""
MOST_CHANNELS = 32
"""Most channels of an image whose axis of channels is found by its size; eight RGB frames have 24."""


def is_image(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Return whether observations are images, that is bytes with three axes."""
    return dtype == torch.uint8 and len(shape) == 3


class Joined(nn.Module):
    """A torso for observations of several entries: a CNN for each image that one reads, and one MLP for all else.

    Where there is a CNN, a ReLU layer joins the features. What the MLP reads is joined before it.
    """

    def __init__(self, entries: Mapping[str, spaces.Box], spec: ModelSpec) -> None:
        super().__init__()
        torsos = {
            name: make_torso(box, spec if is_image_space(box) else replace(spec, torso="mlp"))
            for name, box in entries.items()
        }
        self.images = tuple(name for name, torso in torsos.items() if isinstance(torso, CNN))
        self.others = tuple(name for name in entries if name not in self.images)
        cnns = [torso for torso in torsos.values() if isinstance(torso, CNN)]
        self.cnns, features = nn.ModuleList(cnns), sum(cnn.features for cnn in cnns)
        self.mlp = None
        if self.others:
            self.mlp = MLP((sum(math.prod(entries[name].shape) for name in self.others),), spec)
            features += self.mlp.features
        self.join = dense(features, JOINED_UNITS, spec.torso_noise) if cnns else None
        self.norm = nn.LayerNorm(JOINED_UNITS) if cnns and spec.norm == "layer" else None
        self.features = JOINED_UNITS if cnns else features

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        """Compute features ``[N, F]`` from the scaled entries ``[N, ...]``, by name."""
        features: list[Tensor] = [cnn(x[name]) for name, cnn in zip(self.images, self.cnns, strict=True)]
        if self.mlp is not None:
            features.append(self.mlp(torch.cat([x[name].flatten(1) for name in self.others], -1)))
        if self.join is None:
            return features[0]
        joined = self.join(torch.cat(features, -1))
        return torch.relu(joined if self.norm is None else self.norm(joined))


def is_image_space(box: spaces.Box) -> bool:
    """Return whether a space has images, that is bytes with three axes."""
    return is_image(box.shape, torch.from_numpy(box.low[:0]).dtype)


def make_torso(space: spaces.Box | spaces.Dict, spec: ModelSpec) -> MLP | CNN | Joined:
    """Make the torso that a spec names, for observations of this space.

    Of a Dict each image has a torso of its own, and what no CNN reads has one MLP.

    Raises:
        ValueError: the spec names a CNN, and observations are no images.
        UsageError: the spec names a CNN, and images are too small for it; or it does not tell their channels.
    """
    if isinstance(space, spaces.Dict):
        return Joined(cast("Mapping[str, spaces.Box]", space.spaces), spec)
    shape, dtype = space.shape, torch.from_numpy(space.low[:0]).dtype
    name = torso_of(shape, dtype, spec)
    if name == "mlp":
        return MLP(shape, spec)
    if not is_image(shape, dtype):
        raise ValueError(f"the {name} torso needs images (uint8, three axes), not observations of shape {shape}")
    image, least = channels_first(shape, spec), smallest_side(CNNS[name])
    if min(image[1:]) < least:
        raise UsageError(
            f"--model.torso {name} is not allowed for images of {image[1]} x {image[2]} pixels:"
            f" it needs {least} x {least}; use mlp"
        )
    return CNN(image, CNNS[name], spec)


def torso_of(shape: tuple[int, ...], dtype: torch.dtype, spec: ModelSpec) -> str:
    """Return the name of the torso that a spec asks for: for `auto` a CNN, if observations are images large enough.

    Raises:
        UsageError: the spec does not tell the channels of images.
    """
    if spec.torso != "auto":
        return cast("str", spec.torso)
    large = is_image(shape, dtype) and min(channels_first(shape, spec)[1:]) >= smallest_side(CNNS["a3c-cnn"])
    return "a3c-cnn" if large else "mlp"


def flattening(
    shape: tuple[int, ...], dtype: torch.dtype, spec: ModelSpec, hidden: Sequence[tuple[int, ...]]
) -> str | None:
    """Return a sentence where an MLP reads observations that may be pictures, and the spec does not ask for it.

    Args:
        shape: the shape of one observation.
        dtype: its dtype.
        spec: the settings of the network.
        hidden: the shapes of those parts of an observation that had two axes or more before it was flattened.

    Raises:
        UsageError: the spec does not tell the channels of images.
    """
    if spec.network or spec.torso == "mlp" or torso_of(shape, dtype, spec) != "mlp" or not (hidden or len(shape) > 1):
        return None
    what = f"with parts of shape {', '.join(map(str, hidden))}" if hidden else f"of shape {shape}"
    least = smallest_side(CNNS["a3c-cnn"])
    return (
        f"observations {what} are read by an MLP, not as images: a CNN reads bytes (uint8) with three axes,"
        f" two of them of at least {least} pixels"
    )


def smallest_side(architecture: Architecture) -> int:
    """Return the least height and width of the images that a CNN takes, in pixels."""
    side = 1
    for each in reversed(architecture.convolutions):
        side = max(1, each.least(side))
    return side


def channels_are_last(shape: tuple[int, ...], channels: Channels) -> bool:
    """Return whether the last axis of an image is that of its channels; otherwise it is the first.

    Raises:
        UsageError: neither is small enough to tell.
    """
    first, last = shape[0], shape[-1]
    if channels == "auto" and min(first, last) > MOST_CHANNELS:
        raise UsageError(
            f"--model.channels auto is not allowed for observations of shape {shape}: neither the first nor the last"
            f" axis has at most {MOST_CHANNELS} channels; use first or last"
        )
    return {"auto": last <= first, "first": False, "last": True, "last-up-to-4": last <= 4}[channels]


def channels_first(shape: tuple[int, ...], spec: ModelSpec) -> tuple[int, ...]:
    """Return ``(C, H, W)`` for the shape of an image in either order.

    Raises:
        UsageError: the spec does not tell which axis is that of channels.
    """
    return (shape[-1], *shape[:-1]) if channels_are_last(shape, spec.channels) else shape


def to_channels_last(images: Tensor) -> Tensor:
    """Copy images of bytes ``[N, C, H, W]`` so that channels are last in memory.

    Four channels are combined to words of four bytes, which is twice as fast as to copy single bytes.
    """
    if images.shape[1] != 4 or sys.byteorder != "little" or not images.is_contiguous():
        return images.contiguous(memory_format=torch.channels_last)
    first, *others = images.to(torch.int32).unbind(1)
    for i, channel in enumerate(others, start=1):
        first.add_(channel, alpha=1 << 8 * i)
    return first.unsqueeze(-1).contiguous().view(torch.uint8).permute(0, 3, 1, 2)
