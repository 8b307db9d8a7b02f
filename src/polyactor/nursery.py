"""Where workers come from.

On Linux they are forked from a server that has imported everything once (`polyactor.preloaded`), elsewhere they are
spawned. A forked worker is there at once, and what an import allocates (140 MiB for torch) is shared by all.
Nothing here imports torch, so that the server can do so while its run does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.context import BaseContext

FORKS = sys.platform == "linux"


def open_nursery() -> None:
    """Start the server, which then imports while its caller goes on; it ends when this process does."""
    if FORKS:
        forkserver.set_forkserver_preload(["polyactor.preloaded"])
        with one_thread():
            forkserver.ensure_running()


def contexts() -> Iterator[BaseContext]:
    """How processes are made here: the way to try first, and what always works."""
    if FORKS:
        open_nursery()
        yield get_context("forkserver")
    yield get_context("spawn")


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
