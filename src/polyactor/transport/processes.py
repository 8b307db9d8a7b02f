"""Worker processes: one torch thread each, never outliving the run, never dying silently."""

from __future__ import annotations

import faulthandler
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from polyactor import errors
from polyactor.shared.slot_queue import WakeUp
from polyactor.system.forkserver import WAYS, one_thread, start_forkserver
from polyactor.system.machine import settle

DONE = "done"
"""A worker's last word where all is well: an environment that ends its process may do so with exit code 0, too."""
UNKNOWN = 255
"""What multiprocessing says of a process whose server is gone: it may be alive."""
LAST_WORDS = 6_000
"""Characters of an error's sentence and of its traceback: both fit a pipe (64 KiB) that nobody reads yet."""


def die_with_run(litter: str) -> None:
    """Kill this process when the run's own process ends, however that dies, or has ended already.

    What multiprocessing would have removed had the run ended by itself is removed here.

    From a thread, which has to wait for the interpreter's lock: the kernel's parent-death signal would not, but it is
    about the server that workers are forked from.
    """
    run = multiprocessing.parent_process()
    assert run is not None

    def watch() -> None:
        run.join()
        shutil.rmtree(litter, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-run", daemon=True).start()


def _enter(
    target: Callable[..., None], pipe: Connection, environ: Mapping[str, str], litter: str, args: tuple[Any, ...]
) -> None:
    """A worker's first and last lines."""
    die_with_run(litter)
    os.environ.clear()  # what the server was started with
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what it means
    faulthandler.enable()
    settle()
    try:
        target(*args)
        pipe.send(DONE)  # nobody hears what is said after that
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # skip the interpreter's teardown: an environment's own threads may never end
    except BaseException as error:
        kind = type(error).__name__ if isinstance(error, errors.PolyactorError) else ""
        pipe.send((kind, _shortened(str(error)), _shortened(traceback.format_exc())))
        os._exit(1)


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
        own = (target, theirs, dict(os.environ), multiprocessing.util.get_temp_dir(), (i, *args))
        process = context.Process(target=_enter, args=own, name=f"polyactor-worker-{i}")
        try:
            start_forkserver()
            process.start()
        except (ValueError, OSError, EOFError) as error:  # the server takes at most 250 shared tensors, or is gone
            failure = error
            continue
        finally:
            theirs.close()
        return process, ours
    raise errors.WorkerFailed(f"worker {i} could not be started: {failure}") from failure


class ProcessPool:
    """N processes running one function.

    Args:
        target: an importable function, called as ``target(i, *args)``.
        workers: N.
        args: the same for every worker; tensors in shared memory stay shared.
    """

    def __init__(self, target: Callable[..., None], workers: int, args: tuple[Any, ...]) -> None:
        self.target, self.args = target, args
        self.pipes: dict[int, Connection] = {}
        self.processes: dict[int, Any] = {}
        self.done: set[int] = set()
        """Workers that have ended well."""
        self.workers = workers
        try:
            for i in range(workers):
                self.start(i)
        except BaseException:
            self.stop(grace=0.0)
            raise

    def start(self, i: int) -> None:
        """Start worker i, at first or in place of a process that has ended."""
        with one_thread():
            self.processes[i], self.pipes[i] = _started(i, self.target, self.args)

    def pid(self, i: int) -> int:
        """Of worker i while it runs, else 0."""
        return int(self.processes[i].pid) if i in self.processes else 0

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[errors.WorkerExit]:
        """Wait up to `timeout` seconds for news of a worker, or for a bell; gives workers lost since the last call."""
        sentinels = {process.sentinel: i for i, process in self.processes.items()}
        if wake_up is not None:
            wake_up.wait(timeout, also=list(sentinels))
            timeout = 0.0
        ended = [sentinels[each] for each in wait(list(sentinels), timeout)] if sentinels else []
        return [loss for i in ended if (loss := self._end(i)) is not None]

    def wait(self, timeout: float, wake_up: WakeUp | None = None) -> bool:
        """As `watch`, where no worker may be lost; True when all have ended well.

        Raises:
            PolyactorError: the worker's own, with its traceback as a note.
            WorkerFailed: it raised anything else, or was killed.
        """
        for loss in self.watch(timeout, wake_up):
            raise loss.error
        return len(self.done) == self.workers

    def ask(self, i: int, *, kill: bool) -> None:
        """Terminate worker i, or kill it."""
        process = self.processes.get(i)
        if process is not None and process.exitcode is None:
            (process.kill if kill else process.terminate)()

    def _end(self, i: int) -> errors.WorkerExit | None:
        """Worker i has ended: how?"""
        process, pipe = self.processes.pop(i), self.pipes.pop(i)
        process.join(1.0)  # spawned: its files are closed, and its exit code follows a moment later
        code = process.exitcode or 0
        try:
            if not pipe.poll():  # nothing was said; an environment's own process may still hold the other end open
                raise EOFError
            words = pipe.recv()
        except (EOFError, OSError):
            if code == UNKNOWN:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            killed = f"was killed by signal {-code}" + " (out of memory?)" * (code == -signal.SIGKILL)
            reason = killed if code < 0 else f"ended with code {code}"
            return errors.WorkerExit(i, errors.WorkerFailed(f"worker {i} {reason} before its work was done"), reason)
        finally:
            pipe.close()
        if words == DONE:
            self.done.add(i)
            return None
        kind, sentence, trace = words
        error_type = getattr(errors, kind, None)
        if error_type is not None:
            failure: errors.PolyactorError = error_type(f"worker {i}: {sentence}")
            failure.add_note(trace)
            return errors.WorkerExit(i, failure, sentence, ours=True, raised=True)
        reason = f"raised: {sentence or 'an error'}"
        return errors.WorkerExit(i, errors.WorkerFailed(f"worker {i} {reason}\n{trace}"), reason, raised=True)

    def stop(self, grace: float = 10.0) -> None:
        """Join with a deadline (seconds), then terminate, then kill; each with one deadline for all."""
        for ask, seconds in (("", grace), ("terminate", 2.0), ("kill", 2.0)):
            left = [process for process in self.processes.values() if process.exitcode is None]
            for process in left if ask else []:
                getattr(process, ask)()
            end = time.monotonic() + seconds
            for process in left:
                process.join(max(0.0, end - time.monotonic()))
        for pipe in self.pipes.values():
            pipe.close()
