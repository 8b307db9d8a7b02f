"""Stopping a run by signal: the first SIGINT or SIGTERM asks it to stop, the second ends the process at once.

What a run waits for is said in the terminal, at once after a signal and whenever it has been silent for long.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from polyactor.config import Config
from polyactor.shared.counters import SharedCounters
from polyactor.system.notices import hasten, noticing


@dataclass
class Stop:
    """Whether a signal has asked the run to stop."""

    asked: bool = False

    def __call__(self) -> bool:
        """Return `asked`, for functions that take a callable."""
        return self.asked


@contextmanager
def stop_signals(config: Config, counters: SharedCounters, say: Callable[[str], None]) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM inside the context: the first sets `asked`, the second ends the process at once.

    The exit code is then 128 + the signal's number. Outside the main thread signals are left alone.

    Args:
        config: the run's config.
        counters: the counters of the run; its workers are asked to end by the first signal.
        say: prints what the run waits for, unless the run is quiet.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            os._exit(128 + number)
        stop.asked = True
        counters.stop()
        hasten()

    def what() -> str:
        asked = (counters.heartbeats.asked(worker) for worker in range(counters.workers))
        waits = next((sentence for sentence in asked if sentence is not None), None)
        on = "after this rollout" if config.exact_resume else "after this step"
        so_far = f"stopping {on}" if stop.asked else f"{counters.steps:,} steps so far"
        return so_far if waits is None else f"{so_far}; {waits}"

    mine = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if mine else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        with noticing(None if config.quiet else say, what):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
