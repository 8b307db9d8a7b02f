"""Nobody changes anything for a moment: to save, or to compute with all cores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from polyactor.config import TRANSPORTS, Config
from polyactor.shared.counters import SharedCounters, never

HEED_WITHIN = 0.75
"""Seconds."""


def still(config: Config, counters: SharedCounters) -> AbstractContextManager[bool]:
    """Nobody changes the state inside; gives False when a worker did not heed that in time.

    It is not waited for long: others would wait with it, and it may be one that hangs.
    """
    elsewhere = TRANSPORTS[config.transport].apart and config.scheme.applies_apart
    return counters.paused(HEED_WITHIN) if elsewhere else nullcontext(True)


def paused(
    config: Config, counters: SharedCounters, unless: Callable[[], bool] = never
) -> AbstractContextManager[bool]:
    """All workers wait inside, so that all cores are free; gives False when one did not heed that in time.

    They are waited for no longer when `unless` says so.
    """
    elsewhere = TRANSPORTS[config.transport].apart and not config.scheme.single
    return counters.paused(unless=unless) if elsewhere else nullcontext(True)
