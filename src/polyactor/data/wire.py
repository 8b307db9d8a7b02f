"""Tensors as they travel between machines: frames once and, if wanted, gradients and parameters in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyactor.data.frames import Frames, frames_once, write_frames

Wire = Literal["fp32", "bf16"]
"""What gradients and parameters travel in."""
Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name, as they travel; they may share the memory of what they were made of."""

ROUNDED = frozenset({"vector", "theta", "average"})
"""The names of gradients and parameters. Everything else travels as it is, statistics above all."""
IMAGES = 5
"""The number of axes of images ``[T+1, B, S, H, W]``, and the least of anything that can be stacks of them."""


def encode(tensors: Mapping[str, Tensor], wire: Wire = "fp32") -> dict[str, NDArray[Any]]:
    """Return tensors as arrays that can travel.

    Stacks of frames become the fields of `Frames`, under names such as ``observation.newest``. A number in bfloat16
    travels as the int16 of the same bits, since NumPy has no such floats.

    Args:
        tensors: tensors on the CPU by name, such as those of `Rollout.named`, `GradientSlot.named`, `Layout.split`.
        wire: what the tensors named in `ROUNDED` travel in; bf16 rounds them to the nearest, ties to even.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        stacks = array.dtype == np.uint8 and array.ndim >= IMAGES
        if stacks and (frames := frames_once(array)) is not None:
            arrays |= {f"{name}.{part}": each for part, each in frames._asdict().items()}
        elif wire == "bf16" and name in ROUNDED:
            arrays[name] = tensor.detach().bfloat16().view(torch.int16).numpy()
        else:
            arrays[name] = array
    return arrays


def decode(arrays: Arrays, into: Mapping[str, Tensor]) -> None:
    """Write arrays to the tensors of the same names.

    Args:
        arrays: arrays that `encode` returned for tensors of these names, shapes and dtypes; read-only ones will do.
        into: tensors on the CPU by name.

    Raises:
        KeyError: a name is not among the arrays.
        TypeError, ValueError: an array has another dtype or shape than the tensor of its name.
    """
    for name, tensor in into.items():
        place = tensor.detach().numpy()
        if f"{name}.newest" in arrays:
            write_frames(place, Frames(*(arrays[f"{name}.{part}"] for part in Frames._fields)))
        elif arrays[name].dtype == np.int16 and place.dtype == np.float32:
            np.left_shift(arrays[name].view(np.uint16), 16, out=place.view(np.uint32), dtype=np.uint32)
        else:
            np.copyto(place, arrays[name], casting="no")


def size(arrays: Arrays) -> int:
    """Return the bytes of arrays."""
    return sum(array.nbytes for array in arrays.values())
