"""Which part of its work a worker spends its time with."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum


class Part(StrEnum):
    """What a worker spends its time with."""

    EMULATE = "emulate"
    INFER = "infer"
    STORE = "store"
    DIFFERENTIATE = "differentiate"
    APPLY = "apply"
    WAIT = "wait"


PARTS = tuple(Part)


SAMPLING = (Part.EMULATE, Part.INFER, Part.STORE)


class Watch:
    """Splits time into parts: a lap gives the seconds since the one before to a part."""

    def __init__(self, spend: Callable[[Part, float], None]) -> None:
        self.spend, self.last = spend, time.perf_counter()

    def lap(self, part: Part) -> None:
        """What has passed was this."""
        now = time.perf_counter()
        self.spend(part, now - self.last)
        self.last = now


def unwatched(part: Part, seconds: float) -> None:
    """Nobody wants to know."""
