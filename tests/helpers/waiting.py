"""Waiting for what processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

STARTED = 90.0
"""Seconds within which workers must have started, however busy the machine is."""


def until(condition: Callable[[], bool], go_on: Callable[[], object], deadline: float = STARTED) -> None:
    """Go on until the condition holds; fail after so many seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} seconds"
        go_on()


def nap() -> None:
    time.sleep(0.01)
