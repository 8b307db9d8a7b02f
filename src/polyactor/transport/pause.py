"""Context managers inside which all workers wait: to save a checkpoint, or to compute with all cores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from polyactor.config import TRANSPORTS, Config
from polyactor.shared.counters import SharedCounters, never

HEED_WITHIN = 0.75
"""Seconds that `still` waits for the workers to pause."""


def still(config: Config, counters: SharedCounters) -> AbstractContextManager[bool]:
    """Keep all workers from changing the state inside; the value is False when a worker did not pause in time.

    The deadline is short, because the other workers wait too, and the late one may hang.
    """
    elsewhere = TRANSPORTS[config.transport].apart and config.scheme.applies_apart
    return counters.paused(HEED_WITHIN) if elsewhere else nullcontext(True)


def paused(
    config: Config, counters: SharedCounters, unless: Callable[[], bool] = never
) -> AbstractContextManager[bool]:
    """Pause all workers inside, so that all cores are free; the value is False when a worker did not pause in time.

    Args:
        config: the config of the run.
        counters: the counters of the run, which carry the command.
        unless: a condition on which the workers are no longer waited for.
    """
    elsewhere = TRANSPORTS[config.transport].apart and not config.scheme.single
    return counters.paused(unless=unless) if elsewhere else nullcontext(True)
