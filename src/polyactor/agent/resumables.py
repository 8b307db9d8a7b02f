"""Parts whose state a checkpoint adds for an exact resume, after which a run is bit-identical to one never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from polyactor.errors import CheckpointError

PREFIX = "carried"
"""The prefix of the names of these tensors in a checkpoint."""


class Resumable(Protocol):
    """An object, such as an actor or a learner, whose state can be saved and restored exactly."""

    def snapshot(self) -> dict[str, Tensor]:
        """Return all state that decides what the part does next; the tensors may share its memory."""

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Replace the state of the part by a snapshot."""


class Resumables:
    """A registry, by name, of the parts to save and restore exactly.

    Args:
        saved: the tensors of the checkpoint that an exact resume starts from; None for any other run.
    """

    def __init__(self, saved: Mapping[str, Tensor] | None = None) -> None:
        self.saved = saved or {}
        self.parts: dict[str, Resumable] = {}

    def add(self, name: str, part: Resumable) -> None:
        """Register a part, and in an exact resume restore it from the checkpoint.

        Raises:
            CheckpointError: the checkpoint lacks tensors of the part, or has them with other types or shapes.
        """
        if self.saved:
            prefix = f"{PREFIX}.{name}."
            saved = {key.removeprefix(prefix): tensor for key, tensor in self.saved.items() if key.startswith(prefix)}
            _refuse_others(prefix, part.snapshot(), saved)
            try:
                part.restore(saved)
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
                why = str(error).partition("\n")[0]
                raise CheckpointError(f"the checkpoint's {prefix[:-1]} cannot be gone on from: {why}") from error
        self.parts[name] = part

    def tensors(self) -> dict[str, Tensor]:
        """Return the snapshots of all parts, under the names of their tensors in a checkpoint."""
        return {
            f"{PREFIX}.{name}.{key}": tensor
            for name, part in self.parts.items()
            for key, tensor in part.snapshot().items()
        }


def _refuse_others(prefix: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the saved tensors have the names, dtypes and shapes of the part's tensors.

    Serialized objects (uint8 vectors) may have another length.
    """
    for name, tensor in own.items():
        if name not in saved:
            raise CheckpointError(f"the checkpoint has no {prefix}{name}, so the run cannot go on to the bit")
        found = saved[name]
        is_bytes = found.ndim == tensor.ndim == 1 and tensor.dtype == torch.uint8
        if found.dtype != tensor.dtype or (found.shape != tensor.shape and not is_bytes):
            raise CheckpointError(
                f"the checkpoint's {prefix}{name} is {found.dtype} {list(found.shape)} and this run needs "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
