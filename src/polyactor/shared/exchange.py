"""What the workers of a scheme and its main role exchange: queues of slots, and the memory behind each slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from polyactor.data import Rollout
from polyactor.shared.locks import SequenceLock
from polyactor.shared.slot_queue import SlotQueue


class Place(Protocol):
    """The memory of one slot: a rollout or a gradient."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the place."""

    def named(self) -> dict[str, Tensor]:
        """Return every tensor of the place by name."""


class Places(Protocol):
    """The memory of all slots."""

    def place(self, worker: int, slot: int) -> Any:
        """Return the `Place` of one slot of a worker."""


class Exchange(NamedTuple):
    """What the roles of a scheme share, in the order of their arguments.

    Attributes:
        slots: the queue of each worker.
        places: the memory of the slots.
        lock: held while the main role writes θ.
    """

    slots: SlotQueue
    places: Any
    lock: SequenceLock


@dataclass(frozen=True)
class Rounds:
    """Joint rollouts ``[T, B]``, into whose columns all workers write, so that rollouts are joined without a copy.

    Attributes:
        rounds: the joint rollouts.
        batch: rollouts of each worker in one of them.
        envs: columns of one such rollout.
        first: the worker whose columns come first.
    """

    rounds: Sequence[Rollout]
    batch: int
    envs: int
    first: int = 0

    def place(self, worker: int, slot: int) -> Rollout:
        """Return the columns that a worker's rollout in this slot is written to; they share the joint memory."""
        block = (worker - self.first) * self.batch + slot % self.batch
        return self.round(slot).block(block, self.envs)

    def round(self, slot: int) -> Rollout:
        """Return the joint rollout that a slot of each worker is part of."""
        return self.rounds[slot // self.batch]
