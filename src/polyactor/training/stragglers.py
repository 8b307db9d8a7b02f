"""Who is much slower than the others: in lockstep they wait for it, elsewhere it has little part in what is learned."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from polyactor.shared.counters import Counter, SharedCounters

EVERY = 10.0
"""Seconds over which rollouts are timed."""
FACTOR = 5.0
"""A worker is slow when its rollouts take more than so many times the median of the others', until it is
less than half of that."""


class Stragglers:
    """Compares how long W workers take to collect a rollout.

    Args:
        counters: their counters and times.
    """

    def __init__(self, counters: SharedCounters) -> None:
        self.counters, self.next = counters, time.monotonic() + EVERY
        self.turns, self.seconds = self._counted()
        self.took: dict[int, float] = {}
        """Mean seconds of each worker's rollouts, when it last had any."""
        self.slow: set[int] = set()

    def newly_slow(self) -> Iterator[tuple[int, float]]:
        """Workers that have become slow, each with how many times as long as the others' its rollouts take."""
        if self.counters.workers == 1 or time.monotonic() < self.next:
            return
        self.next = time.monotonic() + EVERY
        turns, seconds = self._counted()
        for i in range(self.counters.workers):
            if turns[i] > self.turns[i]:
                self.took[i] = (seconds[i] - self.seconds[i]) / (turns[i] - self.turns[i])
                self.turns[i], self.seconds[i] = turns[i], seconds[i]
        for i, took in self.took.items():
            others = [each for j, each in self.took.items() if j != i]
            times = took / max(1e-9, statistics.median(others)) if others else 1.0
            if times < FACTOR / 2:
                self.slow.discard(i)
            elif times > FACTOR and i not in self.slow:
                self.slow.add(i)
                yield i, times

    def _counted(self) -> tuple[list[int], list[float]]:
        return self.counters.table[:, Counter.TURNS].tolist(), self.counters.sampling()
