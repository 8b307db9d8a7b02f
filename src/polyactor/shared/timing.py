"""A stopwatch that splits a worker's time into the parts of its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum


class Part(StrEnum):
    """A part of a worker's work."""

    EMULATE = "emulate"
    INFER = "infer"
    STORE = "store"
    DIFFERENTIATE = "differentiate"
    APPLY = "apply"
    WAIT = "wait"


PARTS = tuple(Part)


SAMPLING = (Part.EMULATE, Part.INFER, Part.STORE)


class Watch:
    """A stopwatch: each lap assigns the time since the previous lap to a part of the work.

    Args:
        spend: called at each lap with the part and the seconds.
    """

    def __init__(self, spend: Callable[[Part, float], None]) -> None:
        self.spend, self.last = spend, time.perf_counter()

    def lap(self, part: Part) -> None:
        """Assign the time since the previous lap, or since the watch was made, to a part."""
        now = time.perf_counter()
        self.spend(part, now - self.last)
        self.last = now


def unwatched(part: Part, seconds: float) -> None:
    """Ignore the time spent: the default of `spend` where times are not measured."""
