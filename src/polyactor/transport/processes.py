"""A pool of worker processes with one torch thread each, which end with the run and report their errors to it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from polyactor import errors
from polyactor.shared.slot_queue import WakeUp
from polyactor.system.child_processes import die_with_run, end_worker, lead_group
from polyactor.system.descriptors import few_descriptors, require_descriptors
from polyactor.system.forkserver import WAYS, one_thread, start_forkserver
from polyactor.system.script import hidden_script
from polyactor.transport.last_words import LastWords
from polyactor.transport.surroundings import Surroundings

DONE = "done"
"""The last message of a worker that succeeded. Exit code 0 is no proof: an environment may end the process with it."""


def _enter(target: Callable[..., None], pipe: Connection, surroundings: Surroundings, args: tuple[Any, ...]) -> None:
    """Run the target in a new worker process, and send the run `DONE` or the error through the pipe."""
    lead_group()
    die_with_run(surroundings.litter)
    note = ""
    try:
        note = surroundings.take_over()
        target(*args)
        pipe.send(DONE)  # the last message the run reads
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # skip the interpreter's teardown: an environment's own threads may never end
    except BaseException as error:
        if note:
            error.add_note(note)
        pipe.send(LastWords.of(error))
        os._exit(1)


def _started(i: int, target: Callable[..., None], args: tuple[Any, ...]) -> tuple[Any, Connection]:
    """Start the process of worker i, and return it and the pipe that its last message comes through."""
    failure: Exception | None = None
    for way in WAYS:
        try:
            with few_descriptors(), ExitStack() as opened:
                context: Any = get_context(way)
                ours, theirs = map(opened.enter_context, context.Pipe(duplex=False))
                own = (target, theirs, Surroundings(), (i, *args))
                process = context.Process(target=_enter, args=own, name=f"polyactor-worker-{i}")
                if way == "forkserver":
                    start_forkserver()
                with hidden_script():
                    process.start()
                theirs.close()
                opened.pop_all()
                return process, ours
        # The fork server takes at most 250 shared tensors, is gone, or has no room for the path of its socket.
        except (ValueError, OSError, EOFError, AssertionError) as error:
            failure = error
    raise errors.WorkerFailed(f"worker {i} could not be started: {failure or type(failure).__name__}") from failure


class ProcessPool:
    """Runs one function in N worker processes.

    Args:
        target: an importable function, called as ``target(i, *args)`` in worker i.
        workers: N.
        args: the arguments of every worker; tensors in shared memory stay shared.
    """

    def __init__(self, target: Callable[..., None], workers: int, args: tuple[Any, ...]) -> None:
        self.target, self.args = target, args
        self.pipes: dict[int, Connection] = {}
        self.processes: dict[int, Any] = {}
        self.new: list[int] = []
        self.done: set[int] = set()
        """Workers whose function has returned."""
        self.workers = workers
        require_descriptors(workers, others=4)
        try:
            for i in range(workers):
                self.start(i)
        except BaseException:
            self.stop(grace=0.0)
            raise

    def start(self, i: int) -> None:
        """Start a process for worker i, which must have none."""
        with one_thread():
            self.processes[i], self.pipes[i] = _started(i, self.target, self.args)
        self.new.append(i)

    def begun(self) -> list[tuple[int, dict[str, object]]]:
        """Return the workers that have begun since the last call, each with where it is: its process id."""
        new, self.new = self.new, []
        return [(i, {"pid": self.pid(i)}) for i in new]

    def pid(self, i: int) -> int:
        """Return the process id of worker i, or 0 if it does not run."""
        return int(self.processes[i].pid) if i in self.processes else 0

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[errors.WorkerExit]:
        """Wait until a worker ends or `wake_up` is called, and return the workers that were lost since the last call.

        Args:
            timeout: seconds to wait at most.
            wake_up: ends the wait early.
        """
        sentinels = {process.sentinel: i for i, process in self.processes.items()}
        if wake_up is not None:
            wake_up.wait(timeout, also=list(sentinels))
            timeout = 0.0
        ended = [sentinels[each] for each in wait(list(sentinels), timeout)] if sentinels else []
        return [loss for i in ended if (loss := self._end(i)) is not None]

    def wait(self, timeout: float, wake_up: WakeUp | None = None) -> bool:
        """Wait as `watch` does, and return whether the function has returned in all workers.

        Raises:
            PolyactorError: a worker raised it; its traceback is a note.
            WorkerFailed: a worker raised another exception, or was killed.
        """
        for loss in self.watch(timeout, wake_up):
            raise loss.error
        return len(self.done) == self.workers

    def ask(self, i: int, *, kill: bool) -> None:
        """Ask worker i to end with SIGTERM, or with SIGKILL if `kill` is set."""
        process = self.processes.get(i)
        if process is not None and process.exitcode is None:
            if kill:
                end_worker(process.pid)
            (process.kill if kill else process.terminate)()

    def _end(self, i: int) -> errors.WorkerExit | None:
        """Return how worker i, whose process has ended, was lost, or None if its function returned."""
        process, pipe = self.processes.pop(i), self.pipes.pop(i)
        process.join(1.0)  # the exit code of a spawned process comes a moment after its sentinel
        end_worker(process.pid)
        code = process.exitcode or 0
        try:
            if not pipe.poll():  # no message; an environment's own process may still hold the other end open
                raise EOFError
            words = pipe.recv()
        except (EOFError, OSError):
            killed = f"was killed by signal {-code}" + " (out of memory?)" * (code == -signal.SIGKILL)
            reason = killed if code < 0 else f"ended with code {code}"
            error = errors.WorkerFailed(f"worker {i} {reason} before its work was done")
            return errors.WorkerExit(i, error, reason, memory=code == -signal.SIGKILL)
        finally:
            pipe.close()
        if words == DONE:
            self.done.add(i)
            return None
        exit: errors.WorkerExit = words.of_worker(i)
        return exit

    def stop(self, grace: float = 10.0) -> None:
        """Join all workers, then terminate those left, then kill those left.

        Args:
            grace: seconds to join before workers are terminated.
        """
        for ask, seconds in (("", grace), ("terminate", 2.0), ("kill", 2.0)):
            left = [process for process in self.processes.values() if process.exitcode is None]
            for process in left if ask else []:
                getattr(process, ask)()
            end = time.monotonic() + seconds
            for process in left:
                process.join(max(0.0, end - time.monotonic()))
        for i, pipe in self.pipes.items():
            end_worker(self.pid(i))
            pipe.close()
