"""Worker processes: one torch thread each, never outliving the run, never dying silently."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # tensors among the arguments are shared, not copied

from polyactor import errors
from polyactor.channel import Bell
from polyactor.nursery import WAYS, one_thread, open_nursery

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LAST_WORDS = 6_000
"""Characters of an error's sentence and of its traceback: both fit a pipe (64 KiB) that nobody reads yet."""


def tune_allocator() -> bool:
    """Keep big blocks in the process instead of returning them to the kernel after every update.

    Training throughput nearly doubles with glibc; elsewhere this does nothing and returns False.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 1 << 26}
    return all(mallopt(name, value) for name, value in settings.items())  # stops at the first refusal


def die_with_run() -> None:
    """Kill this process when the run's own process ends, however that dies, or has ended already.

    From a thread, which has to wait for the interpreter's lock: the kernel's parent-death signal would not, but it is
    about the server that workers are forked from.
    """
    run = multiprocessing.parent_process()
    assert run is not None

    def watch() -> None:
        run.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-run", daemon=True).start()


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


def _enter(target: Callable[..., None], pipe: Connection, environ: Mapping[str, str], args: tuple[Any, ...]) -> None:
    """A worker's first and last lines."""
    die_with_run()
    os.environ.clear()  # what the server was started with
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what it means
    faulthandler.enable()
    settle()
    try:
        target(*args)
    except BaseException as error:
        kind = type(error).__name__ if isinstance(error, errors.PolyactorError) else ""
        pipe.send((kind, _shortened(str(error)), _shortened(traceback.format_exc())))
        os._exit(1)  # skip the interpreter's teardown: an environment's own threads may never end


def _shortened(text: str) -> str:
    """Head and tail of a text that is too long: a write that blocks would leave the worker neither alive nor dead."""
    half = LAST_WORDS // 2
    return text if len(text) <= LAST_WORDS else f"{text[:half]} […] {text[-half:]}"


def _started(i: int, target: Callable[..., None], args: tuple[Any, ...]) -> tuple[Any, Connection]:
    """Worker i, and the pipe its last words come through."""
    failure: Exception | None = None
    for way in WAYS:
        context: Any = get_context(way)
        ours, theirs = context.Pipe(duplex=False)
        own = (target, theirs, dict(os.environ), (i, *args))
        process = context.Process(target=_enter, args=own, name=f"polyactor-worker-{i}")
        try:
            open_nursery()
            process.start()
        except (ValueError, OSError, EOFError) as error:  # the server takes at most 250 shared tensors, or is gone
            failure = error
            continue
        finally:
            theirs.close()
        return process, ours
    raise errors.WorkerFailed(f"worker {i} could not be started: {failure}") from failure


class Crew:
    """N processes running one function; raises in the run what went wrong in a worker.

    Args:
        target: an importable function, called as ``target(i, *args)``.
        workers: N.
        args: the same for every worker; tensors in shared memory stay shared.
    """

    def __init__(self, target: Callable[..., None], workers: int, args: tuple[Any, ...]) -> None:
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        with one_thread():
            for i in range(workers):
                process, pipe = _started(i, target, args)
                self.processes.append(process)
                self.pipes.append(pipe)

    def wait(self, timeout: float, bell: Bell | None = None) -> bool:
        """Wait up to `timeout` seconds for news of a worker, or for a bell; True when all have ended well.

        Raises:
            PolyactorError: the worker's own, with its traceback as a note.
            WorkerFailed: it raised anything else, or was killed.
        """
        running = [process for process in self.processes if process.exitcode is None]
        sentinels = [process.sentinel for process in running]
        if bell is not None:
            bell.wait(timeout, also=sentinels)
            timeout = 0.0
        ended = wait(sentinels, timeout) if running else []
        for process in running:
            if process.sentinel in ended:  # spawned: its files are closed, and its exit code follows a moment later
                process.join(1.0)
        for i, process in enumerate(self.processes):
            if process.exitcode not in (None, 0):
                raise self._failure(i)
        return all(process.exitcode == 0 for process in self.processes)

    def _failure(self, i: int) -> errors.PolyactorError:
        code = self.processes[i].exitcode or 0
        try:
            kind, sentence, trace = self.pipes[i].recv()
        except (EOFError, OSError):
            why = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with code {code}"
            return errors.WorkerFailed(f"worker {i} {why} before its work was done")
        error_type = getattr(errors, kind, None)
        if error_type is not None:
            failure: errors.PolyactorError = error_type(f"worker {i}: {sentence}")
            failure.add_note(trace)
            return failure
        return errors.WorkerFailed(f"worker {i} raised: {sentence or 'an error'}\n{trace}")

    def stop(self, grace: float = 10.0) -> None:
        """Join with a deadline (seconds), then terminate, then kill."""
        end = time.monotonic() + grace
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        for ask in ("terminate", "kill"):
            stubborn = [process for process in self.processes if process.exitcode is None]
            for process in stubborn:
                getattr(process, ask)()
            for process in stubborn:
                process.join(2.0)
        for pipe in self.pipes:
            pipe.close()
