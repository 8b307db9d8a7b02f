"""Stopping a run by signal: the first one asks it to stop, and a second SIGINT or SIGTERM ends the process at once.

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
from polyactor.system.child_processes import end_noted
from polyactor.system.interpreter import long_calls_until
from polyactor.system.notices import hasten, noticing


@dataclass
class Stop:
    """Whether a signal has asked the run to stop."""

    counters: SharedCounters
    asked: bool = False

    def ask(self) -> None:
        """Ask the run to stop, as the first signal does."""
        self.asked = True
        self.counters.stop()
        hasten()

    def __call__(self) -> bool:
        """Return `asked`, for functions that take a callable."""
        return self.asked


@contextmanager
def stop_signals(config: Config, counters: SharedCounters, say: Callable[[str], None]) -> Iterator[Stop]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the context: each sets `asked`.

    If it is set already, SIGINT and SIGTERM end the process at once, with the exit code 128 + the signal's number.
    SIGHUP does not: a terminal that is closed sends it twice, by the shell and by the kernel. A SIGHUP that was ignored
    before, as under nohup, stays ignored. Outside the main thread signals are left alone, and so
    are those that a library in C handled before Python began.

    Args:
        config: the run's config.
        counters: the counters of the run; its workers are asked to end by the first signal.
        say: prints what the run waits for, unless the run is quiet.
    """
    stop, run = Stop(counters), os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != run:  # an environment has forked: as in a worker, only SIGTERM means this process
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if stop.asked and number != signal.SIGHUP:
            end_noted()
            os._exit(128 + number)
        stop.ask()

    def what() -> str:
        asked = (counters.heartbeats.asked(worker) for worker in range(counters.workers))
        waits = next((sentence for sentence in asked if sentence is not None), None)
        on = "after this rollout" if config.exact_resume else "after this step"
        so_far = f"stopping {on}" if stop.asked else f"{counters.steps:,} steps so far"
        return so_far if waits is None else f"{so_far}; {waits}"

    handled: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        handled += [signal.SIGINT, signal.SIGTERM]
        handled += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
    handled = [
        number for number in handled if signal.getsignal(number) is not None
    ]  # else C code's, not to be put back
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        # Long calls are refused from the signal on, and not only once the workers have been told.
        with long_calls_until(stop), noticing(None if config.quiet else say, what):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
