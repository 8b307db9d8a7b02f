"""Workers as threads of the run's own process."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from polyactor import errors
from polyactor.channel import Bell


class Threads:
    """As `Crew`, with N threads of this process: they share its interpreter, and nothing travels."""

    def __init__(self, target: Callable[..., None], workers: int, args: tuple[Any, ...]) -> None:
        self.errors: list[BaseException | None] = [None] * workers
        self.news = threading.Event()

        def enter(i: int) -> None:
            try:
                target(i, *args)
            except BaseException as error:
                self.errors[i] = error
            self.news.set()

        self.before = torch.get_num_threads()
        torch.set_num_threads(1)
        names = [f"polyactor-worker-{i}" for i in range(workers)]
        self.threads = [
            threading.Thread(target=enter, args=(i,), name=name, daemon=True) for i, name in enumerate(names)
        ]
        for thread in self.threads:
            thread.start()

    def wait(self, timeout: float, bell: Bell | None = None) -> bool:
        """As `Crew.wait`; what a worker raised is raised as it is."""
        if bell is not None:
            bell.wait(timeout)
        elif self.news.wait(timeout):
            self.news.clear()
        for i, error in enumerate(self.errors):
            if isinstance(error, errors.PolyactorError):
                raise error
            if error is not None:
                trace = "".join(traceback.format_exception(error))
                raise errors.WorkerFailed(f"worker {i} raised: {error or 'an error'}\n{trace}") from error
        return not any(thread.is_alive() for thread in self.threads)

    def stop(self, grace: float = 10.0) -> None:
        """Join with a deadline (seconds); a thread cannot be killed, so one that never ends is left behind."""
        end = time.monotonic() + grace
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        torch.set_num_threads(self.before)
