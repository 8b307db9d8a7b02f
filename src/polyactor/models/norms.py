"""Weight norm: layers whose weights are learned as directions and gains."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyactor.errors import UsageError
from polyactor.models.spec import ModelSpec


def scaled(v: Tensor, g: Tensor) -> Tensor:
    """Return the weights w = g v/‖v‖ ``[O, ...]`` of directions ``v [O, ...]`` and gains ``g [O]``."""
    w: Tensor
    if torch.compiler.is_compiling():  # which joins the passes itself, and warns of functions like ours
        w = v * (g / v.flatten(1).norm(dim=1)).view(-1, *[1] * (v.dim() - 1))
    else:
        w = Scaled.apply(v, g)  # type: ignore[no-untyped-call]
    return w


class Scaled(torch.autograd.Function):
    """The weights of `scaled`, in fewer passes over v than autograd would take.

    torch's own function is as fast, but its second derivative is wrong (torch 2.13).
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, g: Tensor) -> Tensor:
        """Return w."""
        ctx.save_for_backward(v, g)
        return torch._weight_norm(v, g.view(-1, *[1] * (v.dim() - 1)), 0)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, Tensor]:
        """Return dv = g/‖v‖ (dw − dg v/‖v‖) and dg = dw · v/‖v‖ (Salimans & Kingma 2016, eq. 3)."""
        v, g = ctx.saved_tensors
        rows, d, length = v.flatten(1), dw.flatten(1), v.flatten(1).norm(dim=1)
        dg = torch.linalg.vecdot(d, rows) / length
        dv = torch.addcmul(d * (g / length).unsqueeze(1), rows, (g * dg / length.square()).unsqueeze(1), value=-1)
        return dv.view(v.shape), dg


def gain(v: Tensor) -> nn.Parameter:
    """Return the gains ``[O]`` with which the directions v are the weights, ‖v‖."""
    return nn.Parameter(v.detach().flatten(1).norm(dim=1))


class WeightNormLinear(nn.Linear):
    """A dense layer whose weights are w = g v/‖v‖ (Salimans & Kingma 2016), with one gain for each unit.

    It starts as the layer that it is made of. torch's own weight norm keeps v and g in a module of their own that finds
    them as parameters; here they are plain tensors of the layer, which may also be views of shared memory, or the
    constants of an average network. v is `weight`, g is `gain`.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias, self.gain = layer.weight, layer.bias, gain(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., I]`` to ``[..., O]``."""
        return F.linear(x, scaled(self.weight, self.gain), self.bias)


class WeightNormConv2d(nn.Conv2d):
    """A convolution with the weights of `WeightNormLinear`, one gain for each filter."""

    def __init__(self, layer: nn.Conv2d) -> None:
        sizes = layer.kernel_size, layer.stride, layer.padding
        super().__init__(layer.in_channels, layer.out_channels, *sizes)  # type: ignore[arg-type]
        self.weight, self.bias, self.gain = layer.weight, layer.bias, gain(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to ``[N, O, H', W']``."""
        return F.conv2d(x, scaled(self.weight, self.gain), self.bias, self.stride, self.padding)


def weights(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Return the weights ``[O, ...]`` that a layer computes with."""
    if isinstance(layer, WeightNormLinear | WeightNormConv2d):
        return scaled(layer.weight, layer.gain)
    return layer.weight


def normalize_layers(network: nn.Module, spec: ModelSpec, own: Collection[nn.Module]) -> None:
    """Give a network's layers weight norm if the spec has it, which changes nothing that the network computes.

    Args:
        network: the network, which has been made with the layer norm of the spec.
        spec: its settings.
        own: parts of it that the user has written; these stay as they are.

    Raises:
        UsageError: the spec has layer norm, and there is no layer for it.
    """
    if spec.norm == "weight":
        _normalize_weights(network, own)
    theirs = {id(each) for part in own for each in part.modules()}
    if spec.norm == "layer" and all(
        not isinstance(each, nn.LayerNorm) or id(each) in theirs for each in network.modules()
    ):
        raise UsageError(
            "--model.norm layer is not allowed for this network, which has neither a hidden dense layer nor an LSTM or"
            " GRU of polyactor's: use none or weight"
        )


def _normalize_weights(network: nn.Module, own: Collection[nn.Module]) -> None:
    """Replace dense layers and convolutions by those with weight norm; recurrent cells stay."""
    for name, part in network.named_children():
        if type(part) is nn.Linear:
            setattr(network, name, WeightNormLinear(part))
        elif type(part) is nn.Conv2d:
            setattr(network, name, WeightNormConv2d(part))
        elif part not in own:
            _normalize_weights(part, own)
