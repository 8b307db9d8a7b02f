"""What workers write and the run reads: counters, metrics, finished games, and the word that stops them.

Every cell has one writer, so nothing here needs a lock and nothing is left locked when a worker is killed.
All of it is allocated once and lives in shared memory when workers are processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from polyactor.errors import UsageError
from polyactor.types import Metrics

METRICS = ("policy_lag", "gradient_staleness", "grad_norm", "entropy", "value_loss", "policy_loss", "learning_rate")
"""Of every run; an algorithm may name more."""
GAMES_KEPT = 4096
"""Finished games a worker's ring holds until the run has read them."""


class Counter(IntEnum):
    """Columns of the counters, one row per worker."""

    UPDATES = 0
    STEPS = 1
    SKIPPED = 2
    SKIPPED_IN_A_ROW = 3
    GAMES = 4
    PAUSED = 5


class Word(IntEnum):
    """What the run tells its workers."""

    RUN = 0
    PAUSE = 1
    STOP = 2


@dataclass(frozen=True)
class Game:
    """A finished game: its real score, its length in agent steps, and which worker played it."""

    score: float
    length: int
    worker: int


class Board:
    """Shared counters and slots for W workers.

    Args:
        workers: W.
        metrics: what an algorithm's loss reports besides `METRICS`.
    """

    def __init__(self, workers: int, metrics: tuple[str, ...] = ()) -> None:
        self.workers = workers
        self.names = tuple(dict.fromkeys((*METRICS, *metrics)))
        self._counters = torch.zeros(workers, len(Counter), dtype=torch.int64)
        self._metrics = torch.full((workers, len(self.names)), float("nan"), dtype=torch.float64)
        self._games = torch.zeros(workers, GAMES_KEPT, 2, dtype=torch.float64)
        self._word = torch.zeros(1, dtype=torch.int64)
        self._read = [0] * workers

    def share_(self) -> None:
        """Move to shared memory, in place."""
        for tensor in (self._counters, self._metrics, self._games, self._word):
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    # -- what a worker writes --------------------------------------------------------------------------------------

    def count(self, worker: int, counter: Counter, by: int) -> None:
        """Add to one's own counter."""
        self.counters[worker, counter] += by

    def record(self, worker: int, metrics: dict[str, float]) -> None:
        """Put the newest metrics into one's own slot.

        Raises:
            UsageError: a metric the algorithm did not announce, so there is no slot for it.
        """
        row = self._metrics[worker].numpy()
        for name, value in metrics.items():
            if name not in self.names:
                raise UsageError(f"the loss returned the metric '{name}': name it in the algorithm's `metrics` too")
            row[self.names.index(name)] = value

    def game(self, worker: int, score: float, length: int) -> None:
        """Add a finished game; the count is raised last, so a reader never sees half of one."""
        index = int(self.counters[worker, Counter.GAMES])
        self._games[worker, index % GAMES_KEPT] = torch.tensor([score, length], dtype=torch.float64)
        self.counters[worker, Counter.GAMES] = index + 1

    def proceed(self, worker: int) -> bool:
        """Whether to go on; waits here, between updates, while the run is paused."""
        word = self._word.numpy()
        if word[0] == Word.PAUSE:
            self.counters[worker, Counter.PAUSED] = 1
            while word[0] == Word.PAUSE:
                time.sleep(0.005)
            self.counters[worker, Counter.PAUSED] = 0
        return bool(word[0] == Word.RUN)

    def leave(self, worker: int) -> None:
        """This worker changes nothing any more, so a pause need not wait for it."""
        self.counters[worker, Counter.PAUSED] = 1

    # -- what the run reads and says -------------------------------------------------------------------------------

    @property
    def counters(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """``[W, Counter]``, the live memory."""
        return self._counters.numpy()

    @property
    def version(self) -> int:
        """How many updates θ has had, by all workers."""
        return int(self.counters[:, Counter.UPDATES].sum())

    @property
    def steps(self) -> int:
        """Environment steps consumed by updates, by all workers."""
        return int(self.counters[:, Counter.STEPS].sum())

    def metrics(self) -> dict[str, float | None]:
        """Mean over the workers that have reported each."""
        values = self._metrics.numpy()
        seen = ~np.isnan(values)
        sums = np.where(seen, values, 0.0).sum(0)
        return {
            name: float(sums[i] / seen[:, i].sum()) if seen[:, i].any() else None for i, name in enumerate(self.names)
        }

    def new_games(self) -> list[Game]:
        """Games finished since the last call, oldest first within each worker."""
        games = []
        for worker in range(self.workers):
            last = int(self.counters[worker, Counter.GAMES])
            for index in range(max(self._read[worker], last - GAMES_KEPT), last):
                score, length = self._games[worker, index % GAMES_KEPT].tolist()
                games.append(Game(score, int(length), worker))
            self._read[worker] = last
        return games

    def pause(self, deadline: float = 30.0) -> bool:
        """Ask workers to wait between updates; True when all do so within the deadline (seconds), or have stopped."""
        if self._word[0] == Word.STOP:
            return True
        self._word[0] = Word.PAUSE
        end = time.monotonic() + deadline
        while not self.counters[:, Counter.PAUSED].all():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def resume(self) -> None:
        """Let paused workers go on."""
        if self._word[0] == Word.PAUSE:
            self._word[0] = Word.RUN

    def stop(self) -> None:
        """Ask workers to end after their current update."""
        self._word[0] = Word.STOP

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {"board.counters": self._counters}

    def restore(self, counters: Tensor) -> None:
        """Continue from a checkpoint's counters; with another number of workers the first takes all of them."""
        self._counters.zero_()
        if counters.shape == self._counters.shape:
            self._counters.copy_(counters)
        else:
            self._counters[0].copy_(counters.sum(0))
        self._counters[:, Counter.PAUSED] = 0
        self._read = [int(n) for n in self.counters[:, Counter.GAMES]]


def scalars(metrics: Metrics) -> dict[str, float]:
    """Metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
