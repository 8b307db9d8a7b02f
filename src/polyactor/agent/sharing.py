"""Makes what the roles of a scheme share; the transport says in which memory, and for which workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor

from polyactor.agent.parts import make_model
from polyactor.agent.rollout_row import row_of
from polyactor.data import Rollout
from polyactor.models.running_stats import blank_moments
from polyactor.shared.exchange import Exchange, Places, Rounds
from polyactor.shared.gradient_slots import GradientSlot, GradientSlots
from polyactor.shared.locks import SequenceLock, lock_file
from polyactor.shared.slot_queue import SlotQueue, WakeUp

if TYPE_CHECKING:
    from polyactor.agent.parts import Parts


class Tensors(Protocol):
    """Anything made of tensors."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor."""


T = TypeVar("T", bound=Tensors)


@dataclass(frozen=True)
class Sharing:
    """Makes what the roles of one run share.

    Attributes:
        parts: the parts of the run.
        across: whether processes of this machine share it, so that it lies in shared memory.
        only: the one worker that there is memory for, in a process that runs this worker alone; None: all workers.
        wake_up: wakes whatever waits on behalf of the workers; None: each worker has a `WakeUp` of its own.
    """

    parts: Parts
    across: bool = False
    only: int | None = None
    wake_up: WakeUp | None = None

    def gradients(self, queue: int, accumulate: int) -> Exchange:
        """Return queues of gradients on their way to a parameter server.

        Args:
            queue: slots of each worker.
            accumulate: rollouts whose gradients are summed in one slot.
        """
        parts = self.parts
        running = make_model(parts.config, parts.spec).running
        shapes = {name: tuple(part.mean.shape) for name, part in running.items()}

        def slot() -> GradientSlot:
            moments = {name: blank_moments(accumulate, shape) for name, shape in shapes.items()}
            return self._placed(GradientSlot.blank(parts.state.layout.theta, parts.counters.names, moments))

        return self._exchange(queue, GradientSlots({i: [slot() for _ in range(queue)] for i in self._workers}))

    def rollouts(self, rounds: int, batch: int) -> Exchange:
        """Return queues of rollouts on their way to a learner, and joint rollouts that every actor has columns in.

        Args:
            rounds: the number of joint rollouts.
            batch: rollouts of each actor that make one joint rollout.
        """
        config, spec, workers = self.parts.config, self.parts.spec, self._workers
        row = row_of(spec, make_model(config, spec), config.algorithm.needs)
        actors = len(workers) * batch
        sizes = {"t": config.rollout, "b": actors * config.envs, "actors": actors}
        joint = [self._placed(Rollout.blank(row, **sizes)) for _ in range(rounds)]
        return self._exchange(rounds * batch, Rounds(joint, batch, config.envs, workers[0]))

    def lock_file(self) -> AbstractContextManager[str]:
        """Make a file for locks between processes of this machine, and give its path."""
        return lock_file()

    @property
    def _workers(self) -> Sequence[int]:
        return range(self.parts.config.workers) if self.only is None else (self.only,)

    def _exchange(self, slots: int, places: Places) -> Exchange:
        workers = self.parts.config.workers
        wake_ups = [self.wake_up or WakeUp() for _ in range(workers)]
        return Exchange(self._placed(SlotQueue(workers, slots, wake_ups)), places, self._placed(SequenceLock()))

    def _placed(self, memory: T) -> T:
        for tensor in memory.tensors() if self.across else ():
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        return memory
