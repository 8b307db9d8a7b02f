"""What is known of a run while it goes: games, speed, scores; as a row, as a summary, as what a checkpoint keeps."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from polyactor.config import Config
from polyactor.errors import CheckpointError
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.system.host import cpu_name, resident_mb, versions

GAMES = 100
"""A score is the mean of so many games."""
ROWS = 200
"""Rows a run reports, evenly spaced in environment steps, besides one with each checkpoint."""
WEIGH_EVERY = 1.0
"""Seconds in which memory is measured once: it costs more than all else in a row."""


TROUBLES = {
    "updates_skipped": Counter.SKIPPED,
    "worker_restarts": Counter.STARTS,
    "env_errors": Counter.ENV_ERRORS,
}
"""What a row counts of the whole run: what went wrong and was mended."""


class Stats:
    """Reads the shared counters for the run's own process.

    Args:
        config: of the run.
        counters: where workers write.
        before: what a checkpoint kept, where the run goes on from one.

    Raises:
        CheckpointError: that is not what `kept` and `summary` gave.
    """

    def __init__(self, config: Config, counters: SharedCounters, before: Mapping[str, Any]) -> None:
        _refuse_foreign(before)
        self.config, self.counters = config, counters
        self.scores: deque[float] = deque(before.get("scores", []), maxlen=GAMES)
        self.lengths: deque[int] = deque(before.get("lengths", []), maxlen=GAMES)
        self.games_needed = int(before.get("games_needed", GAMES))
        """Games that still have to end before the mean of the last 100 may count as the score asked for."""
        self.best: float | None = before.get("best_score_mean100")
        self.reached: tuple[int, float] | None = None
        self.confirmation: float | None = None
        self.started = time.monotonic() - float(before.get("wall_s", 0.0))
        self.ended: float | None = None
        self.memory_mb, self.weighed = 0.0, -math.inf
        self.row_every = max(1, config.steps // ROWS)
        self.next_row = self._after(counters.steps)
        self.last_row, self.rate = (self.wall, counters.steps), 0.0

    @property
    def wall(self) -> float:
        """Seconds of training, those before a resume counted in; the clock stops when training does."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def mean100(self) -> float | None:
        """Mean score of the last 100 games; of fewer while there are fewer."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def whole(self) -> bool:
        """There have been 100 games."""
        return len(self.scores) == GAMES

    @property
    def due(self) -> bool:
        """It is time for a row."""
        return self.counters.steps >= self.next_row

    @property
    def moved(self) -> bool:
        """There have been steps since the last row."""
        return self.counters.steps > self.last_row[1]

    def take_in_games(self) -> None:
        """Those that have ended since the last call."""
        for game in self.counters.new_games():
            self.scores.append(game.score)
            self.lengths.append(game.length)
            self.games_needed -= 1

    def apart(self, seconds: float) -> None:
        """So much of the time since the last row was no training, and is no part of its rate."""
        wall, steps = self.last_row
        self.last_row = wall + seconds, steps

    def row(self) -> dict[str, Any]:
        """Everything as it is now."""
        counters = self.counters.table
        wall, steps = self.wall, self.counters.steps
        before_wall, before_steps = self.last_row
        if steps > before_steps and wall > before_wall:
            self.rate = (steps - before_steps) / (wall - before_wall)
        games = [int(n) for n in counters[:, Counter.GAMES]]
        return {
            "agent_steps": steps,
            "updates": self.counters.version,
            "games": sum(games),
            "games_per_worker": games,
            "wall_s": round(wall, 3),
            "steps_per_s": round(self.rate, 1),
            "score_mean100": self.mean100,
            "score_last": self.scores[-1] if self.scores else None,
            "length_mean100": statistics.fmean(self.lengths) if self.lengths else None,
            **self.counters.metrics(),
            "rss_mb": None,
            **{name: int(counters[:, counter].sum()) for name, counter in TROUBLES.items()},
        }

    def report(self, *, due: bool) -> dict[str, Any]:
        """The row to keep; one that was due by steps and not by the clock begins new means."""
        row = self.row()
        if time.monotonic() - self.weighed >= WEIGH_EVERY:
            self.memory_mb, self.weighed = round(resident_mb(os.getpid()), 1), time.monotonic()
        row |= {"rss_mb": self.memory_mb}
        self.last_row = row["wall_s"], row["agent_steps"]  # what the row says: workers may have gone on since
        if due:
            self.next_row = self._after(row["agent_steps"])
            self.counters.mark()
        return row

    def is_best(self, row: Mapping[str, Any]) -> bool:
        """Whether this row's mean of 100 games is the best so far, which it then is."""
        better = self.whole and (self.best is None or row["score_mean100"] > self.best)
        if better:
            self.best = row["score_mean100"]
        return better

    def summary(self, status: str) -> dict[str, Any]:
        """What ``summary.json`` says."""
        row = self.row()
        kept = ("agent_steps", "updates", "games", "games_per_worker", "wall_s", "score_mean100")
        reached_at_steps, reached_at_s = self.reached or (None, None)
        return {
            "status": status,
            **{name: row[name] for name in kept},
            "steps_per_s": round(row["agent_steps"] / max(1e-9, row["wall_s"]), 1),
            "best_score_mean100": self.best,
            "reached_at_steps": reached_at_steps,
            "reached_at_s": reached_at_s,
            "confirmation_score": self.confirmation,
            "seed": self.config.seed,
            "versions": versions(),
            "cpu": cpu_name(),
        }

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of it besides the summary."""
        return {"scores": list(self.scores), "lengths": list(self.lengths), "games_needed": self.games_needed}

    def _after(self, steps: int) -> int:
        return (steps // self.row_every + 1) * self.row_every


def _refuse_foreign(before: Mapping[str, Any]) -> None:
    """Refuse what cannot be counted on with."""
    lists, numbers = ("scores", "lengths"), ("games_needed", "wall_s")
    for name in (*lists, *numbers, "best_score_mean100", "best_evaluation"):
        value = before.get(name)
        if name not in before or (value is None and name.startswith("best")):
            continue
        each = value if isinstance(value, list) else [value]
        if isinstance(value, list) != (name in lists) or not all(_is_number(x) for x in each):
            raise CheckpointError(f"the checkpoint's {name} is not what a run keeps")


def _is_number(value: object) -> bool:
    """One that arithmetic goes on with: finite, and not of hundreds of digits."""
    return isinstance(value, int | float) and -(2**63) < value < 2**63
