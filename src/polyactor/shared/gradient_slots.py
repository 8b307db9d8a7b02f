"""Preallocated shared memory for gradients on their way from workers to a parameter server, and their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyactor.data import Gradients, Moments
from polyactor.equations.losses import Reduction
from polyactor.shared.counters import scalars


@dataclass(frozen=True)
class GradientSlot:
    """A buffer for the sum of the gradients of up to N rollouts of one worker.

    Attributes:
        vector: ``[θ]`` the sum of the gradients.
        metrics: ``[2, M]`` float64, sum and count of each metric.
        numbers: ``[3]`` int64: the oldest version of θ that a gradient was taken at, their agent steps, their number.
        moments: the moments to merge into the running statistics, a row per gradient.
        names: the names of the M metrics.
    """

    vector: Tensor
    metrics: Tensor
    numbers: Tensor
    moments: Mapping[str, Moments]
    names: tuple[str, ...]

    @property
    def version(self) -> int:
        """Return the oldest version of θ that one of the gradients was taken at."""
        return int(self.numbers[0])

    @classmethod
    def blank(cls, theta: int, names: Sequence[str], moments: Mapping[str, Moments]) -> GradientSlot:
        """Return an empty slot.

        Args:
            theta: the length of θ.
            names: the names of the metrics.
            moments: zeros for the moments of N rollouts.
        """
        metrics = torch.zeros(2, len(names), dtype=torch.float64)
        return cls(torch.zeros(theta), metrics, torch.zeros(3, dtype=torch.int64), moments, tuple(names))

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the slot."""
        yield from self.named().values()

    def named(self) -> dict[str, Tensor]:
        """Return every tensor of the slot by name."""
        moments = {f"{name}.{part}": x for name, each in self.moments.items() for part, x in each._asdict().items()}
        return {"vector": self.vector, "metrics": self.metrics, "numbers": self.numbers, **moments}

    def put(self, gradients: Gradients) -> None:
        """Write the first gradient of a sum, over the previous content of the slot."""
        self.vector.copy_(gradients.vector)
        self.metrics.zero_()
        self.numbers.copy_(torch.tensor([gradients.version, gradients.steps, 1]))
        for moments in self.moments.values():
            moments.samples.zero_()
        self._book(gradients, row=0)

    def add(self, gradients: Gradients) -> None:
        """Add one more gradient to the sum."""
        self.vector.add_(gradients.vector)
        version, steps, count = self.numbers.tolist()
        self.numbers.copy_(torch.tensor([min(version, gradients.version), steps + gradients.steps, count + 1]))
        self._book(gradients, row=count)

    def _book(self, gradients: Gradients, row: int) -> None:
        for name, value in scalars(gradients.metrics).items():
            self.metrics[:, self.names.index(name)] += torch.tensor([value, 1.0], dtype=torch.float64)
        for name, moments in gradients.moments.items():
            self.moments[name].rows(slice(row, row + 1)).copy_(moments)

    def gradients(self, reduction: Reduction) -> Gradients:
        """Return the content as one gradient, which shares the memory of the slot.

        Args:
            reduction: whether it is the mean or the sum of the gradients written.
        """
        version, steps, count = self.numbers.tolist()
        if reduction == "mean" and count > 1:
            self.vector.div_(count)
        total, counts = self.metrics
        known = {name: float(total[i] / counts[i]) for i, name in enumerate(self.names) if counts[i]}
        return Gradients(self.vector, known, version, steps, self.moments)


@dataclass(frozen=True)
class GradientSlots:
    """The gradient slots of each worker, by the slots of its queue."""

    slots: Mapping[int, Sequence[GradientSlot]]

    def place(self, worker: int, slot: int) -> GradientSlot:
        """Return one slot of a worker."""
        return self.slots[worker][slot]


def mean(several: Sequence[Gradients]) -> Gradients:
    """Return the mean of several gradients, in the memory of the first; their steps and moments are joined."""
    first, *others = several
    for other in others:
        first.vector.add_(other.vector)
    first.vector.div_(len(several))
    metrics = [scalars(each.metrics) for each in several]
    names = metrics[0].keys()
    moments: dict[str, Moments] = {}
    for name in first.moments:
        moments[name] = Moments(*map(torch.cat, zip(*(each.moments[name] for each in several), strict=True)))
    return Gradients(
        first.vector,
        {name: sum(each[name] for each in metrics if name in each) / len(metrics) for name in names},
        min(each.version for each in several),
        sum(each.steps for each in several),
        moments,
    )
