"""Locks for reading and writing the shared parameters from several processes."""

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
"""A lock for reading: a function that returns a loop, whose body reads the data and is repeated until no write has
overlapped it."""

BEGUN, ENDED = 0, 1
"""Places of the numbers of writes that a `SequenceLock` counts."""


def once() -> Iterator[None]:
    """Run the body once, without a lock."""
    yield


class SequenceLock(AbstractContextManager[None]):
    """A sequence lock: one process writes, and any number of processes read, and read again if a write overlapped.

    Readers hold no lock, so a writer never waits for a reader, not even for one whose process is stopped. Threads of
    the writing process exclude each other.

    Args:
        written: ``[2]`` int64: the number of writes begun, and of writes ended.
    """

    def __init__(self, written: Tensor | None = None) -> None:
        self.written = torch.zeros(2, dtype=torch.int64) if written is None else written
        self._threads = Lock()

    def tensors(self) -> Iterator[Tensor]:
        """Yield the counts of writes, which all processes that use the lock share."""
        yield self.written

    def __enter__(self) -> None:
        self._threads.acquire()
        self.written.numpy()[BEGUN] += 1

    def __exit__(self, *_: object) -> None:
        self.written.numpy()[ENDED] += 1
        self._threads.release()

    def reading(self) -> Iterator[None]:
        """Run the body of a loop until no write has overlapped it."""
        written = self.written.numpy()
        while True:
            ended = int(written[ENDED])  # first: a write between this line and the next is then noticed
            if ended == int(written[BEGUN]):
                yield
                if ended == int(written[BEGUN]):
                    return
            else:
                time.sleep(1e-4)

    def __reduce__(self) -> tuple[type[SequenceLock], tuple[Tensor]]:
        return SequenceLock, (self.written,)


class FileLock(AbstractContextManager[None]):
    """A lock on a file, exclusive or shared by readers, which the kernel releases when the holder dies.

    Each instance opens the file itself, so instances exclude each other within a process, too.

    Args:
        path: the path of the file, as `lock_file` gives it.
        shared: whether the lock is for reading, so that several holders may have it at once.
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
        """Run the body of a loop once, while the lock is held."""
        with self:
            yield


@contextmanager
def lock_file() -> Iterator[str]:
    """Make a file for `FileLock`, give its path, and remove the file afterwards.

    On Linux the file is in memory only, so it vanishes with this process however that ends.
    """
    if not hasattr(os, "memfd_create"):
        with NamedTemporaryFile(prefix="polyactor-lock-") as file:
            yield file.name
        return
    descriptor = os.memfd_create("polyactor-lock")
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
