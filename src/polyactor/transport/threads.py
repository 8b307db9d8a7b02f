"""A pool of workers that are threads of the run's own process."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

from polyactor import errors
from polyactor.shared.slot_queue import WakeUp
from polyactor.system.interpreter import Refused, long_calls_until
from polyactor.system.machine import torch_threads

SLICE = 0.05
"""Seconds for which a thread is joined at a time."""


class ThreadPool:
    """Runs one function in N threads of this process; otherwise like `ProcessPool`.

    Args:
        target: a function, called as ``target(i, *args)`` in worker i.
        workers: N.
        args: the arguments of every worker, which are not copied or pickled.
    """

    def __init__(self, target: Callable[..., None], workers: int, args: tuple[Any, ...]) -> None:
        self.target, self.args, self.workers = target, args, workers
        self.raised: dict[int, BaseException] = {}
        self.new: list[int] = []
        self.done: set[int] = set()
        self.news = threading.Event()
        self.threads: dict[int, threading.Thread] = {}
        for i in range(workers):
            self.start(i)

    def start(self, i: int) -> None:
        """Start a thread for worker i."""

        def enter() -> None:
            try:
                with torch_threads(1):
                    self.target(i, *self.args)
                self.done.add(i)
            except Refused:
                return  # the run is about to stop, and not for this thread
            except BaseException as error:
                self.raised[i] = error
            self.news.set()

        self.threads[i] = threading.Thread(target=enter, name=f"polyactor-worker-{i}", daemon=True)
        self.threads[i].start()
        self.new.append(i)

    def begun(self) -> list[tuple[int, dict[str, object]]]:
        """Return the workers that have begun since the last call, each with where it is: the id of this process."""
        new, self.new = self.new, []
        return [(i, {"pid": self.pid(i)}) for i in new]

    def pid(self, i: int) -> int:
        """Return the id of this process, which all workers share."""
        return os.getpid()

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[errors.WorkerExit]:
        """Wait until a worker ends, `wake_up` is called or `timeout` seconds have passed; return the lost workers."""
        if wake_up is not None:
            wake_up.wait(timeout)
        elif self.news.wait(timeout):
            self.news.clear()
        losses: list[errors.WorkerExit] = []
        for i in list(self.raised):
            error = self.raised.pop(i)
            if isinstance(error, errors.PolyactorError):
                losses.append(errors.WorkerExit(i, error, str(error), ours=True, raised=True))
                continue
            reason, trace = f"raised: {errors.shown(error) or 'an error'}", "".join(traceback.format_exception(error))
            losses.append(
                errors.WorkerExit(i, errors.WorkerFailed(f"worker {i} {reason}\n{trace}"), reason, raised=True)
            )
        return losses

    def ask(self, i: int, *, kill: bool) -> None:
        """Refuse to end worker i, because a thread cannot be ended from outside.

        Raises:
            EnvironmentUnsupported: always, because a worker is asked to end only when its environment hangs.
        """
        raise errors.EnvironmentUnsupported(
            f"worker {i} hangs, and a thread cannot be ended: use --scheme.workers-as process"
        )

    def stop(self, grace: float = 10.0) -> None:
        """Join all threads for `grace` seconds together; threads that have not ended by then are left running.

        Seconds in which a library holds the interpreter do not count, since such a call cannot be cut short.
        """
        left, mine = grace, set(self.threads.values())
        with long_calls_until(lambda: threading.current_thread() in mine):
            for thread in self.threads.values():
                while thread.is_alive() and left > 0.0:
                    thread.join(SLICE)
                    left -= SLICE
        self.raised.clear()  # tracebacks hold environments
