"""A queue of numbered slots between each worker and the run, and what wakes those who wait for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait

import torch

from polyactor.system.failpoints import hit


class WakeUp:
    """Wakes one waiting process. A ring is never lost; several may be heard as one."""

    def __init__(self) -> None:
        self.reader, self.writer = Pipe(duplex=False)
        os.set_blocking(self.reader.fileno(), False)
        os.set_blocking(self.writer.fileno(), False)

    def slots(self) -> None:
        """Wake whoever waits, now or later."""
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self.writer.fileno(), b"!")

    def wait(self, timeout: float, also: Sequence[int] = ()) -> None:
        """Until it rings, one of `also` is ready, or so many seconds have passed."""
        wait([self.reader, *also], timeout)
        with suppress(BlockingIOError):
            os.read(self.reader.fileno(), 1 << 16)


class SlotQueue:
    """A bounded queue per worker, of so many slots each: the worker fills them in order, the run empties them in order.

    Args:
        workers: W.
        slots: how many a worker may fill before it has to wait.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self.workers, self.slots = workers, slots
        self._filled = torch.zeros(workers, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._freed = torch.zeros(workers, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._left = torch.zeros(workers, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self._away = torch.zeros(workers, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self._here = torch.zeros(workers, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self.main = WakeUp()
        """Rung when a slot is filled."""
        self.wake_ups = [WakeUp() for _ in range(workers)]
        """Each rung when one of its worker's slots is free again."""

    def free(self, worker: int) -> int | None:
        """The slot this worker fills next, or None while all are full or it has not been let in."""
        if self.away(worker) or self.waiting(worker) == self.slots:
            return None
        return self.latest(worker)

    def put(self, worker: int) -> None:
        """The slot is filled."""
        hit("send")
        self._filled[worker] += 1
        self.main.slots()

    def leave(self, worker: int) -> None:
        """This worker fills no slot any more."""
        self._left[worker] = True
        self.main.slots()

    def playing(self, worker: int) -> bool:
        """It has not left, or has left something behind."""
        return not bool(self._left[worker]) or self.waiting(worker) > 0

    # -- who is lost, and comes back as another process ------------------------------------------------------------

    def lost(self, worker: int, for_good: bool) -> None:
        """Its process has ended: from now on the run may fill its slots, until another one is let in."""
        self._away[worker], self._here[worker] = True, False
        if for_good:
            self._left[worker] = True
        self.main.slots()

    def arrive(self, worker: int) -> None:
        """This worker is ready to fill slots; of one that is not away nobody takes note."""
        self._here[worker] = True
        self.main.slots()

    def admit(self) -> list[int]:
        """Let in whoever has arrived; gives these workers."""
        arrived = [i for i in range(self.workers) if self._away[i] and self._here[i]]
        for i in arrived:
            self._away[i] = False
            self.wake_ups[i].slots()
        return arrived

    def away(self, worker: int) -> bool:
        """It is lost, and nobody has been let in in its place."""
        return bool(self._away[worker])

    def latest(self, worker: int) -> int:
        """The slot that is filled next, by whoever may."""
        return int(self._filled[worker]) % self.slots

    def waiting(self, worker: int) -> int:
        """Slots filled and not yet released."""
        return int(self._filled[worker]) - int(self._freed[worker])

    def next(self, worker: int) -> int:
        """The oldest filled slot."""
        return int(self._freed[worker]) % self.slots

    def release(self, worker: int, count: int = 1) -> None:
        """The oldest `count` slots may be filled anew."""
        self._freed[worker] += count
        self.wake_ups[worker].slots()
