"""Stopping a run by signal: the first SIGINT or SIGTERM asks it to stop, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from polyactor.system.child_processes import end_noted


@dataclass
class Stop:
    """Whether a signal has asked the run to stop."""

    asked: bool = False

    def __call__(self) -> bool:
        """Return `asked`, for functions that take a callable."""
        return self.asked


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM inside the context: the first sets `asked`, the second ends the process at once.

    The exit code is then 128 + the signal's number. Outside the main thread signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            end_noted()
            os._exit(128 + number)
        stop.asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
