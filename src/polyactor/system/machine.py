"""What a process takes of the machine: how it keeps memory, how much of it is shared, how many threads compute."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from polyactor.errors import OutOfResources

CONTAINER_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files of control groups, versions 2 and 1."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def tune_allocator() -> bool:
    """Keep big blocks in the process instead of returning them to the kernel after every update.

    Training is a third faster with glibc (docs/performance.md); elsewhere this does nothing and returns False.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 1 << 26}
    return all(mallopt(name, value) for name, value in settings.items())  # stops at the first refusal


@contextmanager
def shared_memory() -> Iterator[None]:
    """Tensors are moved to shared memory inside.

    Raises:
        OutOfResources: there is not enough of it.
    """
    try:
        yield
    except RuntimeError as error:
        if "No space left" not in str(error):
            raise
        free = shutil.disk_usage("/dev/shm").free / 2**20
        raise OutOfResources(
            f"not enough shared memory: {free:,.0f} MB of /dev/shm are left; a container gets more by "
            "docker run --shm-size, and --transport inline needs none"
        ) from error


def memory_mb() -> float:
    """Memory that processes may take here, in MiB: the machine's, or less in a container; NaN where that is unknown."""
    limits: list[int] = []
    with suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CONTAINER_LIMITS:
        with suppress(ValueError, OSError):  # "max" is none
            limits.append(int(path.read_text()))
    return min(limits, default=math.nan) / 2**20


def settle() -> None:
    """One torch thread: a worker keeps one core busy by itself, and two would wait for each other.

    Global random streams are made its own: forked processes would all have the same.
    """
    tune_allocator()
    torch.set_num_threads(1)
    torch.seed()
    np.random.seed()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many torch threads in this process, inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
