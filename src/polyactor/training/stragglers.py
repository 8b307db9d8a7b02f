"""Stragglers: workers that take much longer than the others to collect a rollout."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from polyactor.shared.counters import Counter, SharedCounters

EVERY = 10.0
"""Seconds between two comparisons of the workers."""
FACTOR = 5.0
"""A worker is slow once its rollouts take this many times the median of the others, until they take half of that."""


class Stragglers:
    """Compares the mean seconds that each of W workers takes to collect a rollout.

    Args:
        counters: the counters and times that the workers write.
    """

    def __init__(self, counters: SharedCounters) -> None:
        self.counters, self.next = counters, time.monotonic() + EVERY
        self.turns, self.seconds = self._counted()
        self.took: dict[int, float] = {}
        """Mean seconds per rollout by worker, over the last period in which the worker collected any."""
        self.slow: set[int] = set()

    def newly_slow(self) -> Iterator[tuple[int, float]]:
        """Yield each worker that has become slow, and its seconds per rollout divided by the median of the others."""
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
        """Return the rollouts that each worker has collected, and the seconds it has spent on collecting."""
        return self.counters.table[:, Counter.TURNS].tolist(), self.counters.sampling()
