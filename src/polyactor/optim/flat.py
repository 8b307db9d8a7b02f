"""The flat vector that workers share, [θ ‖ running statistics], and the layout of a model's tensors in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polyactor.optim.kfac import Layer
from polyactor.optim.rules import Rule, Statistics

ALIGNMENT, WORD = 64, 4
"""Bytes of a cache line and of a float32. Each tensor starts on a cache line, so that no two tensors share one."""


AVERAGE = "average."
"""What names of tensors of an average network begin with."""


@dataclass(frozen=True)
class Slot:
    """The place of one tensor of a model in the flat vector."""

    name: str
    shape: torch.Size
    start: int

    def view(self, vector: Tensor) -> Tensor:
        """Return the tensor as a view of the vector."""
        return vector[self.start : self.start + self.shape.numel()].view(self.shape)


@dataclass(frozen=True)
class Layout:
    """The layout of a model's tensors in a flat vector: parameters first, then buffers such as running statistics.

    Attributes:
        slots: the places of all tensors.
        theta: the length of the first part, which has the parameters.
        size: the length of the whole vector.
    """

    slots: tuple[Slot, ...]
    theta: int
    size: int

    @property
    def convolutional(self) -> bool:
        """Whether the model has a convolution."""
        return any(len(slot.shape) == 4 for slot in self.slots)

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Return the layout of a model's parameters and buffers, each in the order of the model.

        The parameters of an average network, which are buffers, come last and in the order of θ. Integers and flags are
        constants that each copy of the model has of its own.
        """
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
        order = {f"{AVERAGE}{slot.name}": i for i, slot in enumerate(slots, start=1)}
        numbers = [named for named in model.named_buffers() if named[1].is_floating_point()]
        size = place(iter(sorted(numbers, key=lambda named: order.get(named[0], 0))))
        return cls(tuple(slots), theta, size)

    @property
    def average(self) -> int:
        """The place where the parameters of the average network begin; the end where there is none."""
        averaged = {f"{AVERAGE}{slot.name}" for slot in self.slots if slot.start < self.theta}
        return next((slot.start for slot in self.slots if slot.name in averaged), self.size)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return θ, the running statistics and the parameters of the average network, as views of a vector by name.

        What the model has none of is left out.
        """
        parts = {
            "theta": slice(self.theta),
            "statistics": slice(self.theta, self.average),
            "average": slice(self.average, None),
        }
        return {name: part for name, place in parts.items() if len(part := vector[place])}


def bind(model: nn.Module, vector: Tensor) -> Layout:
    """Copy a model's parameters and buffers to a flat vector ``[layout.size]``, and make them views of it."""
    layout = Layout.of(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    views = dict[int, Tensor]()  # of buffers, of which one may have several names
    with torch.no_grad():
        for slot in layout.slots:
            view = slot.view(vector)
            if slot.name in parameters:
                parameter = parameters[slot.name]
                view.copy_(parameter)
                parameter.data = view
            else:
                view.copy_(buffers[slot.name])
                views[id(buffers[slot.name])] = view
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if id(buffer) in views:
            setattr(model.get_submodule(owner), leaf, views[id(buffer)])
    return layout


def parameter_views(model: nn.Module, vector: Tensor) -> list[Tensor]:
    """Return views of a flat vector ``[layout.theta]`` for a model's parameters, in the order of the model."""
    places = {slot.name: slot.view(vector) for slot in Layout.of(model).slots if slot.start < len(vector)}
    return [places[name] for name, _ in model.named_parameters()]


@dataclass
class State:
    """The state that learning changes: parameters, running statistics and the optimizer's statistics.

    Attributes:
        layout: the places of the model's tensors in `vector`.
        vector: ``[layout.size]`` float32, [θ ‖ running statistics].
        statistics: the optimizer's statistics, one set for all workers or one set per worker.
    """

    layout: Layout
    vector: Tensor
    statistics: tuple[Statistics, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, model: nn.Module, rule: Rule, workers: int, layers: Sequence[Layer] = ()) -> State:
        """Make the state of a model, whose parameters and buffers become views of it.

        Args:
            model: the model.
            rule: the optimizer, which decides on the statistics.
            workers: the number of workers, for statistics per worker.
            layers: the layers of the model, for rules that are `factored`.
        """
        layout = Layout.of(model)
        dtype = next(model.parameters()).dtype
        vector = torch.zeros(layout.size, dtype=dtype)
        bind(model, vector)
        sets = 1 if rule.shared else workers
        return cls(layout, vector, tuple(rule.statistics(vector[: layout.theta], layers) for _ in range(sets)))

    @property
    def theta(self) -> Tensor:
        """The parameters θ as a view of the vector, ``[layout.theta]``."""
        return self.vector[: self.layout.theta]

    @property
    def average(self) -> Tensor | None:
        """The parameters θ_a of the average network as a view of the vector in the layout of θ; None without one."""
        start = self.layout.average
        return self.vector[start : start + self.layout.theta] if start < self.layout.size else None

    def share_(self) -> None:
        """Move all tensors to shared memory, in place."""
        self.vector.share_memory_()  # type: ignore[no-untyped-call]
        for statistics in self.statistics:
            for tensor in statistics.values():
                tensor.share_memory_()  # type: ignore[no-untyped-call]

    def views(self) -> dict[str, Tensor]:
        """Return views of the model's parameters and buffers, by name."""
        return {slot.name: slot.view(self.vector) for slot in self.layout.slots}

    def tensors(self) -> dict[str, Tensor]:
        """Return views of all tensors by the names that they have in a checkpoint."""
        named = {f"model.{name}": tensor for name, tensor in self.views().items()}
        for i, statistics in enumerate(self.statistics):
            named |= {f"optimizer.{i}.{name}": tensor for name, tensor in statistics.items()}
        return named
