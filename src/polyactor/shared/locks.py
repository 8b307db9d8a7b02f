"""Locks around the parameters, for readers and writers in several processes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from tempfile import NamedTemporaryFile
from threading import Lock
from weakref import finalize

import torch
from torch import Tensor

Reading = Callable[[], Iterator[None]]
"""What is protected is read in the body of the loop this gives, the last time undisturbed."""


def once() -> Iterator[None]:
    """Read without a lock."""
    yield


class SequenceLock(AbstractContextManager[None]):
    """Held by a thread of one process while it writes; any number of processes may read, and read again what changed.

    Readers hold nothing, so whoever writes never waits for them, not even for one that is stopped.

    Args:
        written: how many writes have begun, and how many have ended; shared.
    """

    def __init__(self, written: Tensor | None = None) -> None:
        if written is None:
            written = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.written: Tensor = written
        self._begun, self._ended = self.written.numpy()[:1], self.written.numpy()[1:]
        self._threads = Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        self._begun += 1

    def __exit__(self, *_: object) -> None:
        self._ended += 1
        self._threads.release()

    def reading(self) -> Iterator[None]:
        """To read in the body of a loop: as often as it takes until nothing was written meanwhile."""
        while True:
            ended = int(self._ended[0])  # first: a write that begins and ends between these two lines shows
            if ended == int(self._begun[0]):
                yield
                if ended == int(self._begun[0]):
                    return
            else:
                time.sleep(1e-4)

    def __reduce__(self) -> tuple[type[SequenceLock], tuple[Tensor]]:
        return SequenceLock, (self.written,)


class FileLock(AbstractContextManager[None]):
    """Exclusive, or shared with other readers; the kernel releases it when its holder dies, however that happens.

    Each instance is a holder of its own, so it serves threads as it does processes.
    """

    def __init__(self, path: str, *, shared: bool = False) -> None:
        self.descriptor = os.open(path, os.O_RDWR)
        finalize(self, os.close, self.descriptor)
        self.how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX

    def __enter__(self) -> None:
        fcntl.flock(self.descriptor, self.how)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def reading(self) -> Iterator[None]:
        """To read in the body of a loop, which is done once."""
        with self:
            yield


@contextmanager
def lock_file() -> Iterator[str]:
    """The path of a file for `FileLock`, gone in the end; where the system can, however this process ends."""
    if not hasattr(os, "memfd_create"):
        with NamedTemporaryFile(prefix="polyactor-lock-") as file:
            yield file.name
        return
    descriptor = os.memfd_create("polyactor-lock")
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
