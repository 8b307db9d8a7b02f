"""File descriptors, of which a system lets each process have a certain number."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from polyactor.errors import OutOfResources

OWN = "/proc/self/fd"
"""The folder with an entry for each open file descriptor of this process, on Linux."""
PER_WORKER, OTHERS = 3, 24
"""Descriptors that the run's process needs for each worker process, and at most for its files and shared memory."""

TEXT = os.strerror(errno.EMFILE)
"""The words of the system for a process that has too many open files."""


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Turn an error about too few file descriptors, raised inside the with block, into one that names the way out.

    Raises:
        OutOfResources: no more files can be opened.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter
        if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE) and TEXT not in str(error):
            raise
        raise too_few() from error


def require_descriptors(workers: int, others: int = OTHERS) -> None:
    """Check that this process may open the files that so many worker processes, and others, will need.

    Raises:
        OutOfResources: it may not.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(FileNotFoundError), few_descriptors():
        if most != resource.RLIM_INFINITY and len(os.listdir(OWN)) + PER_WORKER * workers + others > most:
            raise too_few()


def too_few() -> OutOfResources:
    """Return the error of a process that cannot open as many files as it needs."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OutOfResources(
        f"too few file descriptors: a process may have {most} of them here (ulimit -n); raise that limit, as by "
        "ulimit -n 4096, or use fewer --workers"
    )
