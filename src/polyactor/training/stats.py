"""Statistics of a run: games, scores, speed and memory, as metrics rows, as the summary and for checkpoints."""

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
"""The number of games whose mean is the score of a run."""
ROWS = 200
"""The number of metrics rows of a whole run, evenly spaced in agent steps; each checkpoint adds one more."""
WEIGH_EVERY = 1.0
"""Least seconds between two measurements of memory, which cost more than the rest of a metrics row."""


TROUBLES = {
    "updates_skipped": Counter.SKIPPED,
    "worker_restarts": Counter.STARTS,
    "env_errors": Counter.ENV_ERRORS,
}
"""Columns of a metrics row that count failures over the whole run, and the counter behind each."""


class Stats:
    """The statistics of a run, which the main process derives from the shared counters.

    Args:
        config: the run's config.
        counters: the counters that the workers write.
        before: the meta of the checkpoint that the run resumes from; empty in a new run.

    Raises:
        CheckpointError: `before` has values that no run saves.
    """

    def __init__(self, config: Config, counters: SharedCounters, before: Mapping[str, Any]) -> None:
        _refuse_foreign(before)
        self.config, self.counters = config, counters
        self.scores: deque[float] = deque(before.get("scores", []), maxlen=GAMES)
        self.lengths: deque[int] = deque(before.get("lengths", []), maxlen=GAMES)
        self.games_needed = int(before.get("games_needed", GAMES))
        """Games that must still end before the mean of the last 100 is compared with the target score."""
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
        """Seconds of training, including those before a resume; the clock stops when training ends."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def mean100(self) -> float | None:
        """Mean score of the last 100 games, or of all while there are fewer; None before the first has ended."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def whole(self) -> bool:
        """Whether at least 100 games have ended."""
        return len(self.scores) == GAMES

    @property
    def due(self) -> bool:
        """Whether it is time for a metrics row."""
        return self.counters.steps >= self.next_row

    @property
    def moved(self) -> bool:
        """Whether there have been agent steps since the last metrics row."""
        return self.counters.steps > self.last_row[1]

    def take_in_games(self) -> None:
        """Add the scores and lengths of the games that ended since the last call."""
        for game in self.counters.new_games():
            self.scores.append(game.score)
            self.lengths.append(game.length)
            self.games_needed -= 1

    def apart(self, seconds: float) -> None:
        """Exclude `seconds` spent on anything but training from the speed in the next metrics row."""
        wall, steps = self.last_row
        self.last_row = wall + seconds, steps

    def row(self) -> dict[str, Any]:
        """Return the current metrics row by column; memory (``rss_mb``) is None, since only `report` measures it."""
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
        """Return the metrics row to log, with memory in MiB.

        Args:
            due: whether agent steps and not the clock asked for the row; then losses and lags are averaged anew.
        """
        row = self.row()
        if time.monotonic() - self.weighed >= WEIGH_EVERY:
            self.memory_mb, self.weighed = round(resident_mb(os.getpid()), 1), time.monotonic()
        row |= {"rss_mb": self.memory_mb}
        self.last_row = row["wall_s"], row["agent_steps"]  # as in the row: workers may have gone on since
        if due:
            self.next_row = self._after(row["agent_steps"])
            self.counters.mark()
        return row

    def is_best(self, row: Mapping[str, Any]) -> bool:
        """Whether the mean score of 100 games in a metrics row is the best so far; if so, keep it as the best."""
        better = self.whole and (self.best is None or row["score_mean100"] > self.best)
        if better:
            self.best = row["score_mean100"]
        return better

    def summary(self, status: str) -> dict[str, Any]:
        """Return the content of ``summary.json`` for a run of this status."""
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
        """Return what a checkpoint's meta holds besides the summary: statistics, and settings changed by callbacks."""
        kept = {"scores": list(self.scores), "lengths": list(self.lengths), "games_needed": self.games_needed}
        return kept | {"changes": self.counters.changes.made()}

    def _after(self, steps: int) -> int:
        """Return the agent steps at which the first metrics row after `steps` is due."""
        return (steps // self.row_every + 1) * self.row_every


def _refuse_foreign(before: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where statistics in a checkpoint have a type or a size that no run saves."""
    lists, numbers = ("scores", "lengths"), ("games_needed", "wall_s")
    for name in (*lists, *numbers, "best_score_mean100", "best_evaluation"):
        value = before.get(name)
        if name not in before or (value is None and name.startswith("best")):
            continue
        each = value if isinstance(value, list) else [value]
        if isinstance(value, list) != (name in lists) or not all(_is_number(x) for x in each):
            raise CheckpointError(f"the checkpoint's {name} is not what a run keeps")


def _is_number(value: object) -> bool:
    """Whether a value is a finite number below 2⁶³ in size."""
    return isinstance(value, int | float) and -(2**63) < value < 2**63
