"""Bounded queues between workers and the run's own process, as numbers of slots in memory that both sides share.

A queue carries no data: a worker fills slot i of a preallocated buffer, then puts it, and the run reads and frees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait

import torch
from torch import Tensor

from polyactor.system.failpoints import hit


class WakeUp:
    """Wakes one waiting process from any other, through a pipe.

    A call that comes before the process waits is not lost; several calls may wake it only once.
    """

    def __init__(self) -> None:
        self.reader, self.writer = Pipe(duplex=False)
        os.set_blocking(self.reader.fileno(), False)
        os.set_blocking(self.writer.fileno(), False)

    def wake(self) -> None:
        """Wake the process that waits, or that will wait next."""
        with suppress(BlockingIOError):  # the pipe is full, so the process wakes anyway
            os.write(self.writer.fileno(), b"!")

    def wait(self, timeout: float, also: Sequence[int] = ()) -> None:
        """Wait for a call, or until a file descriptor of `also` is ready, or for `timeout` seconds at most."""
        wait([self.reader, *also], timeout)
        with suppress(BlockingIOError):
            os.read(self.reader.fileno(), 1 << 16)


class SlotQueue:
    """A bounded first-in, first-out queue per worker: the worker fills its slots, and the run's own process frees them.

    When a worker dies, its queue is closed to workers ("away") and the run may fill slots in its place. The process
    that replaces the worker announces itself (`arrive`), and writes again when the run has let it in (`admit`).

    Args:
        workers: W.
        slots: slots of each worker; one that has filled all of them waits.
        wake_ups: wake each worker when one of its slots is free again, or when it is let in.
    """

    def __init__(self, workers: int, slots: int, wake_ups: Sequence[WakeUp]) -> None:
        self.workers, self.slots, self.wake_ups = workers, slots, wake_ups
        self._filled, self._freed = (torch.zeros(workers, dtype=torch.int64) for _ in range(2))
        self._left, self._away, self._here = (torch.zeros(workers, dtype=torch.bool) for _ in range(3))
        self.main = WakeUp()
        """Wakes the run's own process when a slot is filled, or when a worker arrives, leaves or is lost."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the queues, which all processes that use them share."""
        yield from (self._filled, self._freed, self._left, self._away, self._here)

    def free(self, worker: int) -> int | None:
        """Return the slot that a worker fills next, or None while all its slots are full or it is not yet let in."""
        if self.away(worker) or self.waiting(worker) == self.slots:
            return None
        return self.latest(worker)

    def put(self, worker: int) -> None:
        """Add the slot that a worker has just filled to its queue."""
        hit("send")
        self._filled[worker] += 1
        self.main.wake()

    def leave(self, worker: int) -> None:
        """Note that a worker will fill no more slots."""
        self._left[worker] = True
        self.main.wake()

    def playing(self, worker: int) -> bool:
        """Return whether a worker may still fill slots, or has filled some that are not yet freed."""
        return not bool(self._left[worker]) or self.waiting(worker) > 0

    # -- workers that die and are replaced -------------------------------------------------------------------------

    def lost(self, worker: int, for_good: bool) -> None:
        """Close the queue of a worker whose process has ended, until its replacement is let in.

        Args:
            worker: the number of the worker.
            for_good: whether the worker will not be replaced.
        """
        self._away[worker], self._here[worker] = True, False
        if for_good:
            self._left[worker] = True
        self.main.wake()

    def arrive(self, worker: int) -> None:
        """Announce that a worker is ready to fill slots; this has no effect unless its queue is closed."""
        self._here[worker] = True
        self.main.wake()

    def admit(self) -> list[int]:
        """Open the queues of the replacement workers that have arrived, and return the numbers of these workers."""
        arrived = [i for i in range(self.workers) if self._away[i] and self._here[i]]
        for i in arrived:
            self._away[i] = False
            self.wake_ups[i].wake()
        return arrived

    def away(self, worker: int) -> bool:
        """Return whether a worker's process has ended and its replacement has not yet been let in."""
        return bool(self._away[worker])

    def latest(self, worker: int) -> int:
        """Return the slot of a worker's queue that is filled next, even while the queue is full or closed."""
        return int(self._filled[worker]) % self.slots

    def filled(self, worker: int) -> int:
        """Return how many slots of a worker have been filled since the run began."""
        return int(self._filled[worker])

    def left(self, worker: int) -> bool:
        """Return whether a worker will fill no more slots."""
        return bool(self._left[worker])

    def grant(self, worker: int, number: int | None) -> None:
        """Let a worker of another machine, which has a queue of its own, fill one more slot, or none.

        Args:
            worker: the number of the worker.
            number: how many slots of the run's queue have been filled before this one; None: it is to wait.
        """
        self._away[worker] = number is None
        if number is not None:
            self._filled[worker] = self._freed[worker] = number

    def waiting(self, worker: int) -> int:
        """Return the number of a worker's slots that are filled and not yet freed."""
        return int(self._filled[worker]) - int(self._freed[worker])

    def next(self, worker: int) -> int:
        """Return the oldest filled slot of a worker's queue."""
        return int(self._freed[worker]) % self.slots

    def release(self, worker: int, count: int = 1) -> None:
        """Free the oldest `count` filled slots of a worker, and wake the worker."""
        self._freed[worker] += count
        self.wake_ups[worker].wake()
