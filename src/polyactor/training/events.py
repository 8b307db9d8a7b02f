"""Events of a run: failures, slow workers and scarce memory, logged in ``events.jsonl`` and printed."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable
from typing import Any

from polyactor.config import Config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage.metrics_log import MetricsLog
from polyactor.system.machine import memory_mb
from polyactor.training.progress import no_game
from polyactor.training.stragglers import Stragglers

SAID = 5
"""Events of one name that are printed as well; later ones are only logged."""
WEIGHED_AT = 2
"""The metrics row at which memory in use is printed; by then all workers have been training for some time."""
LONG_GAME = 30_000
"""Steps of each environment after which a run says that no game has ended: more than the longest game of Atari."""
SCARCE = 0.9
"""Share of this machine's memory above which a run warns that memory is low."""


class Events:
    """Logs and prints the events of a run.

    Args:
        config: the run's config.
        counters: the counters that the workers write.
        log: receives every event.
        say: prints a line.
    """

    def __init__(self, config: Config, counters: SharedCounters, log: MetricsLog, say: Callable[[str], None]) -> None:
        self.config, self.counters, self.log, self.say = config, counters, log, say
        self.stragglers, self.told = Stragglers(counters), Counts[str]()
        self.rows, self.skipped = 0, self._skipped()
        self.lasting = not config.algorithm.remembers
        """Whether memory in use cannot be reclaimed by the system; cached pages of replay files can be."""

    def tell(self, event: str, reason: str = "", **fields: Any) -> None:
        """Log an event; print it as well if it has a reason and is among the first five of its name."""
        self.log.event(event, reason, **fields)
        self.told[event] += 1
        if reason and self.told[event] <= SAID:
            more = "; more of these are in events.jsonl" if self.told[event] == SAID else ""
            self.say(f"{event.replace('_', ' ')}: {reason}{more}")

    def tell_news(self) -> None:
        """Tell of environments that failed and workers that became slow since the last call."""
        for worker, sentence in self.counters.new_env_errors():
            self.tell("env_error", f"worker {worker}: {sentence}", worker=worker)
        for worker, times in self.stragglers.newly_slow():
            words = f"rollouts of worker {worker} take {times:.1f} times as long as the others'"
            self.tell("worker_slow", f"{words}; in lockstep all wait for it", worker=worker)

    def reported(self, taken: float) -> None:
        """Log the updates skipped since the last metrics row, and tell of the memory in use; call it after each row.

        Args:
            taken: memory of all the run's processes, in MiB.
        """
        skipped = self._skipped()
        if skipped > self.skipped:
            self.log.event(
                "update_skipped", "a gradient or a running statistic was not finite", updates=skipped - self.skipped
            )
            self.skipped = skipped
        self.rows += 1
        waited = self.counters.steps // (self.config.workers * self.config.envs)
        if waited >= LONG_GAME and not self.told["no_game"] and not self.counters.table[:, Counter.GAMES].sum():
            self.tell("no_game", no_game(self.config, self.counters.steps))
        there = memory_mb()
        if self.rows == WEIGHED_AT:
            self.say(f"takes {taken:,.0f} MiB of memory, of {there:,.0f} MiB here")
        if self.lasting and taken > SCARCE * there and not self.told["memory_low"]:
            self.tell("memory_low", f"{taken:,.0f} of {there:,.0f} MiB are taken: fewer --workers or --envs need less")

    def _skipped(self) -> int:
        return int(self.counters.table[:, Counter.SKIPPED].sum())
