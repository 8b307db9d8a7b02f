"""What a person is told of workers, environments and memory while a run goes on: on the record, and on the screen."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable
from typing import Any

from polyactor.config import Config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage.metrics_log import MetricsLog
from polyactor.system.machine import memory_mb
from polyactor.training.stragglers import Stragglers

SAID = 5
"""Events of one kind that are said on the screen, too."""
WEIGHED_AT = 2
"""The row at which all workers have long been at work."""
SCARCE = 0.9
"""Share of the memory there is that is nearly all."""


class Events:
    """Hears of what happens and looks for what does not tell of itself.

    Args:
        config: of the run.
        counters: where workers write.
        log: gets every event.
        say: shows a line to a person.
    """

    def __init__(self, config: Config, counters: SharedCounters, log: MetricsLog, say: Callable[[str], None]) -> None:
        self.counters, self.log, self.say = counters, log, say
        self.stragglers, self.told = Stragglers(counters), Counts[str]()
        self.rows, self.skipped = 0, self._skipped()
        self.lasting = not config.algorithm.remembers
        """Whether what is taken stays so: what replay keeps of its files in memory the system takes back."""

    def tell(self, event: str, reason: str = "", **fields: Any) -> None:
        """On the record, and on the screen where there is a reason, for the first few of a kind."""
        self.log.event(event, reason, **fields)
        self.told[event] += 1
        if reason and self.told[event] <= SAID:
            more = "; more of these are in events.jsonl" if self.told[event] == SAID else ""
            self.say(f"{event.replace('_', ' ')}: {reason}{more}")

    def tell_news(self) -> None:
        """Environments that failed since the last look, and workers that have become slow."""
        for worker, sentence in self.counters.new_env_errors():
            self.tell("env_error", f"worker {worker}: {sentence}", worker=worker)
        for worker, times in self.stragglers.newly_slow():
            words = f"rollouts of worker {worker} take {times:.1f} times as long as the others'"
            self.tell("worker_slow", f"{words}; in lockstep all wait for it", worker=worker)

    def reported(self, taken: float) -> None:
        """A row was written: updates skipped since the one before, and what memory is taken.

        Args:
            taken: memory of all processes, in MiB.
        """
        skipped = self._skipped()
        if skipped > self.skipped:
            self.log.event("update_skipped", "the gradient was not finite", updates=skipped - self.skipped)
            self.skipped = skipped
        self.rows += 1
        there = memory_mb()
        if self.rows == WEIGHED_AT:
            self.say(f"takes {taken:,.0f} MiB of memory, of {there:,.0f} MiB here")
        if self.lasting and taken > SCARCE * there and not self.told["memory_low"]:
            self.tell("memory_low", f"{taken:,.0f} of {there:,.0f} MiB are taken: fewer --workers or --envs need less")

    def _skipped(self) -> int:
        return int(self.counters.table[:, Counter.SKIPPED].sum())
