"""One flat vector for everything the workers share: [θ ‖ running statistics]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polyactor.optim.rules import Rule, Statistics

ALIGNMENT, WORD = 64, 4
"""Bytes; each tensor starts on its own cache line, so two workers' writes to two tensors never share one."""


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


@dataclass
class State:
    """Everything that learning changes.

    Attributes:
        layout: the meaning of `vector`.
        vector: ``[layout.size]`` float32, [θ ‖ running statistics].
        statistics: the optimizer's, one set for all workers or one set per worker.
    """

    layout: Layout
    vector: Tensor
    statistics: tuple[Statistics, ...] = field(default_factory=tuple)

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
        return named
