"""A watchdog for environments that run in the run's own process: it interrupts one that hangs, or ends the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polyactor.config import Config
from polyactor.envs import name_of
from polyactor.shared.counters import SharedCounters
from polyactor.system.deadline import interrupting

Tell = Callable[..., None]
"""A function that records events, called with an event's name, a reason and fields, as `MetricsLog.event` is."""


def untold(event: str, reason: str = "", **fields: object) -> None:
    """Ignore an event: the default of `tell`."""


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
    env, heartbeats, seconds = name_of(config.env), counters.heartbeats, config.env_timeout

    def hanging() -> tuple[int, str] | None:
        found = ((worker, heartbeats.hanging(worker, seconds)) for worker in range(counters.workers))
        return next(((worker, hang) for worker, hang in found if hang is not None), None)

    def overdue() -> str | None:
        found = hanging()
        return None if found is None else f"{env}: {found[1]}"

    def again() -> None:
        if (found := hanging()) is not None:
            heartbeats.again(found[0])

    with interrupting(overdue, again, tell, every=min(0.25, seconds / 4), trusting=seconds):
        yield
