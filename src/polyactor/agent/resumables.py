"""What only an exact resume needs: parts of a run that are saved with the rest and go on from there to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from polyactor.errors import CheckpointError

PREFIX = "carried"
"""Before the names of these tensors in a checkpoint."""


class Resumable(Protocol):
    """A part of a run that goes on where it was."""

    def snapshot(self) -> dict[str, Tensor]:
        """All that decides what the part does next; may share its memory."""

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from a snapshot."""


class Resumables:
    """The registry of such parts, by name.

    Args:
        saved: the tensors of the checkpoint that the run goes on from to the bit; none where it does not.
    """

    def __init__(self, saved: Mapping[str, Tensor] | None = None) -> None:
        self.saved = saved or {}
        self.parts: dict[str, Resumable] = {}

    def add(self, name: str, part: Resumable) -> None:
        """Save a part from now on; where there is a checkpoint, the part goes on from what that has.

        Raises:
            CheckpointError: the checkpoint has nothing of the part, or what it has is of another kind.
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
        """A snapshot of every part, by the names that a checkpoint has them under."""
        return {
            f"{PREFIX}.{name}.{key}": tensor
            for name, part in self.parts.items()
            for key, tensor in part.snapshot().items()
        }


def _refuse_others(prefix: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not of the names, types and shapes of one's own; bytes may be more or fewer."""
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
