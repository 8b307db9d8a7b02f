"""One flat vector for everything the workers share: [θ ‖ running statistics]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from polyactor.errors import CheckpointError
from polyactor.optim.rules import Rule, Statistics

CARRIED = "carried"
"""Before the names of tensors that only an exact resume needs."""
ALIGNMENT, WORD = 64, 4
"""Bytes; each tensor starts on its own cache line, so two workers' writes to two tensors never share one."""


class Carried(Protocol):
    """Whoever goes on where it was when a run is resumed."""

    def snapshot(self) -> dict[str, Tensor]:
        """All that decides what it does next; may share its memory."""

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a model lies in the vector."""

    name: str
    shape: torch.Size
    start: int

    def view(self, vector: Tensor) -> Tensor:
        """The tensor, sharing the vector's memory."""
        return vector[self.start : self.start + self.shape.numel()].view(self.shape)


@dataclass(frozen=True)
class Layout:
    """Parameters first, then buffers (running statistics), each aligned.

    Attributes:
        slots: every tensor's place.
        theta: length of the part an optimizer moves.
        size: length of the whole vector.
    """

    slots: tuple[Slot, ...]
    theta: int
    size: int

    @property
    def convolutional(self) -> bool:
        """Some tensor is the weight of a convolution."""
        return any(len(slot.shape) == 4 for slot in self.slots)

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of a model's parameters and buffers, in the order the model names them."""
        slots: list[Slot] = []
        end = 0

        def place(named: Iterator[tuple[str, Tensor]]) -> int:
            nonlocal end
            for name, tensor in named:
                slots.append(Slot(name, tensor.shape, end))
                per_line = ALIGNMENT // WORD
                end += -(-tensor.numel() // per_line) * per_line
            return end

        theta = place(model.named_parameters())
        buffers = sorted(model.named_buffers(), key=lambda named: named[0].startswith("average."))  # in one piece, last
        size = place(iter(buffers))
        return cls(tuple(slots), theta, size)


def bind(model: nn.Module, vector: Tensor) -> Layout:
    """Make a model's parameters and buffers views of a flat vector ``[layout.size]``; values are copied in first."""
    layout = Layout.of(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    with torch.no_grad():
        for slot in layout.slots:
            view = slot.view(vector)
            if slot.name in parameters:
                parameter = parameters[slot.name]
                view.copy_(parameter)
                parameter.data = view
            else:
                view.copy_(buffers[slot.name])
                owner, _, leaf = slot.name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, view)
    return layout


def parameter_views(model: nn.Module, vector: Tensor) -> list[Tensor]:
    """The places of a model's parameters in a flat vector ``[layout.theta]``, in the order the model lists them."""
    places = {slot.name: slot.view(vector) for slot in Layout.of(model).slots if slot.start < len(vector)}
    return [places[name] for name, _ in model.named_parameters()]


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


@dataclass
class State:
    """Everything that learning changes.

    Attributes:
        layout: the meaning of `vector`.
        vector: ``[layout.size]`` float32, [θ ‖ running statistics].
        statistics: the optimizer's, one set for all workers or one set per worker.
        carried: who else is saved, by name.
        found: what a checkpoint has of them.
    """

    layout: Layout
    vector: Tensor
    statistics: tuple[Statistics, ...] = field(default_factory=tuple)
    carried: dict[str, Carried] = field(default_factory=dict)
    found: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, rule: Rule, workers: int) -> State:
        """A state that holds the model's values; the model is bound to it."""
        layout = Layout.of(model)
        dtype = next(model.parameters()).dtype
        vector = torch.zeros(layout.size, dtype=dtype)
        bind(model, vector)
        sets = 1 if rule.shared else workers
        return cls(layout, vector, tuple(rule.statistics(vector[: layout.theta]) for _ in range(sets)))

    @property
    def theta(self) -> Tensor:
        """θ, the part an optimizer moves; shares memory."""
        return self.vector[: self.layout.theta]

    @property
    def average(self) -> Tensor | None:
        """θ_a, laid out as θ, where the model has an average of itself; shares memory."""
        theirs = [slot.start for slot in self.layout.slots if slot.name.startswith("average.")]
        return self.vector[theirs[0] : theirs[0] + self.layout.theta] if theirs else None

    def carry(self, name: str, part: Carried) -> None:
        """Save this part with the rest from now on; where there is a checkpoint, it goes on from what that has.

        Raises:
            CheckpointError: the checkpoint has nothing of it, or what it has is of another kind.
        """
        prefix = f"{CARRIED}.{name}."
        saved = {key.removeprefix(prefix): tensor for key, tensor in self.found.items() if key.startswith(prefix)}
        if self.found:
            _refuse_others(prefix, part.snapshot(), saved)
            try:
                part.restore(saved)
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
                why = str(error).partition("\n")[0]
                raise CheckpointError(f"the checkpoint's {prefix[:-1]} cannot be gone on from: {why}") from error
        self.carried[name] = part

    def share_(self) -> None:
        """Move everything to shared memory, in place."""
        self.vector.share_memory_()  # type: ignore[no-untyped-call]
        for statistics in self.statistics:
            for tensor in statistics.values():
                tensor.share_memory_()  # type: ignore[no-untyped-call]

    def views(self) -> dict[str, Tensor]:
        """The model's parameters and buffers by name, sharing memory."""
        return {slot.name: slot.view(self.vector) for slot in self.layout.slots}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, sharing memory: what a checkpoint holds."""
        named = {f"model.{name}": tensor for name, tensor in self.views().items()}
        for i, statistics in enumerate(self.statistics):
            named |= {f"optimizer.{i}.{name}": tensor for name, tensor in statistics.items()}
        for part, carried in self.carried.items():
            named |= {f"{CARRIED}.{part}.{name}": tensor for name, tensor in carried.snapshot().items()}
        return named
