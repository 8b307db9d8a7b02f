"""Stopping a run by signal: the first one asks it to stop, and a second SIGINT or SIGTERM ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from polyactor.system.child_processes import end_noted
from polyactor.system.interpreter import long_calls_until


@dataclass
class Stop:
    """Whether a signal has asked the run to stop."""

    asked: bool = False

    def __call__(self) -> bool:
        """Return `asked`, for functions that take a callable."""
        return self.asked


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the context: each sets `asked`.

    If it is set already, SIGINT and SIGTERM end the process at once, with the exit code 128 + the signal's number.
    SIGHUP does not: a terminal that is closed sends it twice, by the shell and by the kernel. A SIGHUP that was ignored
    before, as under nohup, stays ignored. Outside the main thread signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked and number != signal.SIGHUP:
            end_noted()
            os._exit(128 + number)
        stop.asked = True

    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        with long_calls_until(stop):  # from now on, and not only once the workers have been told
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
