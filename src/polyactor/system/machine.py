"""Resources of this process: the memory allocator, shared memory, memory limits and threads."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from polyactor.errors import OutOfResources
from polyactor.files import same_directory
from polyactor.system.descriptors import few_descriptors
from polyactor.system.streams import lasting_streams

CONTAINER_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container, for control groups version 2 and 1."""
AUTOCAST = "cpu", "cuda"
"""Kinds of devices on which a model may compute."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def tune_allocator() -> bool:
    """Make malloc keep freed memory instead of returning it to the kernel after every update; return whether it will.

    This makes training a third faster with glibc (docs/performance.md). Other C libraries do not support it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 1 << 26}
    return all(mallopt(name, value) for name, value in settings.items())  # stops at the first refusal


@contextmanager
def shared_memory() -> Iterator[None]:
    """Turn torch's errors about shared memory, raised inside the with block, into ones that name the way out.

    Raises:
        OutOfResources: there is not enough shared memory, or there are too few file descriptors for it.
    """
    try:
        with few_descriptors():
            yield
    except RuntimeError as error:
        if os.strerror(errno.EFBIG) in str(error):
            raise OutOfResources(
                "not enough shared memory: a process may make no files as large as that here (ulimit -f); raise that "
                "limit, as by ulimit -f unlimited"
            ) from error
        if "No space left" not in str(error):
            raise
        free = shutil.disk_usage("/dev/shm").free / 2**20
        raise OutOfResources(
            f"not enough shared memory: {free:,.0f} MB of /dev/shm are left; a container gets more by "
            "docker run --shm-size, and --transport inline needs none"
        ) from error


def memory_mb() -> float:
    """Return the memory that processes may use, in MiB: the machine's, or less in a container; NaN if it is unknown."""
    limits: list[int] = []
    with suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CONTAINER_LIMITS:
        with suppress(ValueError, OSError):  # "max" is none
            limits.append(int(path.read_text()))
    return min(limits, default=math.nan) / 2**20


def settle() -> None:
    """Prepare a worker process: tune malloc, use one thread and the defaults of torch, and seed the global streams.

    Each worker keeps one core busy. Without new seeds all forked processes would draw the same numbers.
    """
    tune_allocator()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.seed()
    np.random.seed()


@contextmanager
def usual_tensors() -> Iterator[None]:
    """Let torch make and compute tensors of float32 on the CPU inside the with block, whatever the caller has set.

    What the caller may have set are torch's default dtype and device, and autocast.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    casting = [kind for kind in AUTOCAST if torch.is_autocast_enabled(kind)]
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device(None)
    for kind in casting:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)
        for kind in casting:
            torch.set_autocast_enabled(kind, True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Train inside the with block as in a process of its own, and leave the caller's as it was."""
    with same_directory(), lasting_streams(), usual_tensors():
        yield


class _Threads(threading.local):
    """How many `torch_threads` blocks are open in a thread, and in all threads the number before the first of them."""

    lock, everywhere, before_all = threading.Lock(), 0, 0
    here = 0


_threads = _Threads()


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Set the number of torch threads and allow gradients inside the with block, whatever the caller has set."""
    with torch_threads(threads), torch.inference_mode(False):
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch threads inside the with block, in this thread, and put back what was before it.

    torch keeps the number by thread, but a thread that is new to torch takes the number that any thread set last. So
    what is put back in it, while another thread is in such a block, is the number from before all of them.
    """
    own, shared = _threads, _Threads
    with shared.lock:
        before = torch.get_num_threads()
        if not shared.everywhere:
            shared.before_all = before
        elif not own.here:
            before = shared.before_all
        shared.everywhere += 1
        own.here += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with shared.lock:
            shared.everywhere -= 1
            own.here -= 1
            torch.set_num_threads(before)
