"""Environments of the run's own process: nobody else can be ended in place of one that hangs."""

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
from polyactor.errors import EnvironmentUnsupported
from polyactor.shared.counters import SharedCounters

Tell = Callable[..., None]
"""Called with an event's name, a reason and fields, as `MetricsLog.event` is."""
PATIENCE = 2.0
"""Seconds from asking what hangs to end, to ending its process."""
KNOCK = signal.SIGURG
"""What a thread that watches sends to the one that plays: nobody else means anything by it, and it ends nothing."""


def untold(event: str, reason: str = "", **fields: object) -> None:
    """Nobody wants to know."""


class Unanswered(EnvironmentUnsupported):
    """An environment of this process was interrupted."""


@contextmanager
def watched(config: Config, counters: SharedCounters, tell: Tell) -> Iterator[None]:
    """Inside, an environment that does not answer in time is interrupted: it fails as one that raises.

    One that computes in C cannot be interrupted; that ends this process with exit code 3. Where the run is not in the
    main thread it is only told of.
    """
    env, over = str(getattr(config.env, "__qualname__", config.env)), threading.Event()

    def hanging() -> tuple[int, EnvironmentUnsupported] | None:
        for worker in range(counters.workers):
            hang = counters.heartbeats.hanging(worker, config.env_timeout)
            if hang is not None:
                return worker, EnvironmentUnsupported(f"worker {worker}, {env}: {hang}")
        return None

    def interrupt(number: int, frame: FrameType | None) -> None:
        if (found := hanging()) is not None:  # asked by who plays itself, so it cannot have been answered meanwhile
            counters.heartbeats.again(found[0])  # it is closed next, and may hang in that, too
            raise Unanswered(f"{env} gave no answer within {config.env_timeout:g} s")

    def watch() -> None:
        knocked: float | None = None
        looked = trusted = monotonic()
        while not over.wait(min(0.25, config.env_timeout / 4)):
            gap, looked = monotonic() - looked, monotonic()
            if gap > PATIENCE:  # the whole process was stopped
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
        watcher.join(PATIENCE)  # the interpreter may end next, and a thread that wakes in that aborts the process
        if mine:
            signal.signal(KNOCK, before)
