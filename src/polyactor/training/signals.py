"""Stopping by signal: the first SIGINT or SIGTERM asks, the second does not ask."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether a signal has asked for the end."""

    asked: bool = False

    def __call__(self) -> bool:
        """As `asked`, for who looks again and again."""
        return self.asked


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Inside, the first SIGINT or SIGTERM sets `asked`; the second ends the process at once, with 128 + its number.

    In a thread that is not the main one signals stay as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            os._exit(128 + number)
        stop.asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
