"""Starts the fork server from which worker processes are forked.

On Linux workers are forked from a server that has imported everything once (`polyactor.training.forkserver_preload`);
elsewhere they are spawned. A forked worker starts at once, and all workers share the memory that imports allocate.
This module does not import torch, so that the server and the run can import it at the same time.

The server is that of `multiprocessing`. If the program has already started one, workers are forked from it and import
the modules it lacks. Environment variables that a library reads at import have their values of the server's start.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver

from polyactor.system.process_state import environment_variables

FORKS = sys.platform == "linux"
WAYS = ("forkserver", "spawn") if FORKS else ("spawn",)
"""Start methods of `multiprocessing`: the one to try first, and the one that always works."""


def start_forkserver() -> None:
    """Start the fork server without waiting for its imports; it ends when this process does."""
    if FORKS:
        forkserver.set_forkserver_preload(["polyactor.training.forkserver_preload"])
        with one_thread():
            forkserver.ensure_running()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit the math libraries of processes started inside the with block to one thread.

    To start one would settle the start method of the caller's own processes, too: that is put back.
    """
    unsettled = multiprocessing.get_start_method(allow_none=True) is None
    try:
        with environment_variables(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
            yield
    finally:
        if unsettled:
            multiprocessing.set_start_method(None, force=True)
