"""Where workers come from.

On Linux they are forked from a server that has imported everything once
(`polyactor.training.forkserver_preload`), elsewhere they are spawned. A forked worker is there at once, and what an
import allocates is shared by all. Nothing here imports torch, so that the server can do so while its run does.

The server is that of `multiprocessing`: a program that has started it for itself keeps its own, and workers then import
what that one has not. Environment variables that a library reads when it is loaded are those of the server's start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver

FORKS = sys.platform == "linux"
WAYS = ("forkserver", "spawn") if FORKS else ("spawn",)
"""To start a process: the one to try first, and the one that always works."""


def start_forkserver() -> None:
    """Start the server, which then imports while its caller goes on; it ends when this process does."""
    if FORKS:
        forkserver.set_forkserver_preload(["polyactor.training.forkserver_preload"])
        with one_thread():
            forkserver.ensure_running()


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started inside have one thread in every math library."""
    inherited = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(inherited, "1"))
    try:
        yield
    finally:
        for name, value in inherited.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
