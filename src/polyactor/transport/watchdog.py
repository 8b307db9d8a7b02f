"""A watchdog for environments that run in the run's own process: it interrupts one that hangs, or ends the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from polyactor.config import Config
from polyactor.envs import name_of
from polyactor.errors import EnvironmentUnsupported
from polyactor.shared.counters import SharedCounters
from polyactor.system.child_processes import end_noted

Tell = Callable[..., None]
"""A function that records events, called with an event's name, a reason and fields, as `MetricsLog.event` is."""
PATIENCE = 2.0
"""Seconds between asking a hanging environment or worker to end and killing its process."""
KNOCK = signal.SIGURG
"""The signal that interrupts the thread which steps environments. Programs ignore SIGURG unless they handle it."""


def untold(event: str, reason: str = "", **fields: object) -> None:
    """Ignore an event: the default of `tell`."""


class Unanswered(EnvironmentUnsupported):
    """The watchdog interrupted an environment of this process that missed its deadline (exit code 3)."""


@contextmanager
def watched(config: Config, counters: SharedCounters, tell: Tell) -> Iterator[None]:
    """Interrupt environments that miss their deadline inside the with block, so that they fail as if they had raised.

    An environment that hangs in C code cannot be interrupted; this process then ends with exit code 3. Only the main
    thread can be interrupted: for a run in another thread a hanging environment is only reported.

    Args:
        config: the config of the run, with the deadline `env_timeout` in seconds.
        counters: the counters of the run; their heartbeats tell which environment has not answered.
        tell: called when an environment hangs.
    """
    env, over = name_of(config.env), threading.Event()

    def hanging() -> tuple[int, EnvironmentUnsupported] | None:
        for worker in range(counters.workers):
            hang = counters.heartbeats.hanging(worker, config.env_timeout)
            if hang is not None:
                return worker, EnvironmentUnsupported(f"worker {worker}, {env}: {hang}")
        return None

    def interrupt(number: int, frame: FrameType | None) -> None:
        if (found := hanging()) is not None:  # checked in the thread that steps, so no answer can come in between
            counters.heartbeats.again(found[0])  # the environment is closed next, and may hang in that, too
            raise Unanswered(f"{env} gave no answer within {config.env_timeout:g} s")

    def watch() -> None:
        knocked: float | None = None
        looked = trusted = monotonic()
        while not over.wait(min(0.25, config.env_timeout / 4)):
            gap, looked = monotonic() - looked, monotonic()
            if gap > PATIENCE:  # this process was stopped
                trusted = looked + min(gap, config.env_timeout)
            found = hanging() if looked >= trusted else None
            if found is None:
                knocked = None
            elif knocked is None:
                knocked = monotonic()
                if mine:
                    signal.pthread_kill(player, KNOCK)
                else:
                    tell("env_hangs", str(found[1]))
            elif mine and monotonic() > knocked + PATIENCE:
                tell("failed", str(found[1]))
                sentence = f"polyactor: {found[1]}; it cannot be interrupted, so this process has ended"
                print(sentence, file=sys.stderr, flush=True)
                end_noted()
                os._exit(EnvironmentUnsupported.exit_code)

    player = threading.get_ident()
    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(KNOCK, interrupt) if mine else None
    watcher = threading.Thread(target=watch, name="polyactor-watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(PATIENCE)  # a thread that wakes while the interpreter ends would abort the process
        if mine:
            signal.signal(KNOCK, before)
