"""Workers as threads of the run's own process."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from polyactor import errors
from polyactor.shared.slot_queue import WakeUp


class ThreadPool:
    """As `ProcessPool`, with N threads of this process: they share its interpreter, and nothing travels."""

    def __init__(self, target: Callable[..., None], workers: int, args: tuple[Any, ...]) -> None:
        self.target, self.args, self.workers = target, args, workers
        self.raised: dict[int, BaseException] = {}
        self.done: set[int] = set()
        self.news = threading.Event()
        self.threads: dict[int, threading.Thread] = {}
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)
        for i in range(workers):
            self.start(i)

    def start(self, i: int) -> None:
        """As `ProcessPool.start`."""

        def enter() -> None:
            try:
                self.target(i, *self.args)
                self.done.add(i)
            except BaseException as error:
                self.raised[i] = error
            self.news.set()

        self.threads[i] = threading.Thread(target=enter, name=f"polyactor-worker-{i}", daemon=True)
        self.threads[i].start()

    def pid(self, i: int) -> int:
        """Of this process."""
        return os.getpid()

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[errors.WorkerExit]:
        """As `ProcessPool.watch`; an error of ours is raised as it is."""
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
            reason, trace = f"raised: {error or 'an error'}", "".join(traceback.format_exception(error))
            losses.append(
                errors.WorkerExit(i, errors.WorkerFailed(f"worker {i} {reason}\n{trace}"), reason, raised=True)
            )
        return losses

    def ask(self, i: int, *, kill: bool) -> None:
        """A thread cannot be ended from outside.

        Raises:
            EnvironmentUnsupported: always; what hangs is an environment.
        """
        raise errors.EnvironmentUnsupported(
            f"worker {i} hangs, and a thread cannot be ended: use --scheme.workers-as process"
        )

    def stop(self, grace: float = 10.0) -> None:
        """Join with a deadline (seconds); a thread cannot be killed, so one that never ends is left behind."""
        end = time.monotonic() + grace
        for thread in self.threads.values():
            thread.join(max(0.0, end - time.monotonic()))
        torch.set_num_threads(self.before)
