"""What workers count and report, in shared memory: steps, updates, games, metrics, errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyactor.errors import UsageError
from polyactor.shared.heartbeat import Heartbeats
from polyactor.shared.timing import PARTS, SAMPLING, Part

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
    DROPPED = 4
    GAMES = 5
    PAUSED = 6
    ENV_ERRORS = 7
    STARTS = 8
    TURNS = 9


def nothing() -> None:
    """There is nothing else to do."""


def never() -> bool:
    """Nobody asks for that."""
    return False


RUN, STOP = 0, -1
"""What the run tells its workers; a number above 0 is a pause, each with a number of its own."""


LEFT = -1
"""In the column PAUSED: this worker changes nothing, or nothing yet."""


ERRORS_KEPT, ERROR_LENGTH = 16, 512
"""Sentences about environments that a worker's ring holds, and bytes of each."""


@dataclass(frozen=True)
class Game:
    """A finished game: its real score, its length in agent steps, and which worker played it."""

    score: float
    length: int
    worker: int


class SharedCounters:
    """Shared counters and slots for W workers.

    Args:
        workers: W.
        metrics: what an algorithm's loss reports besides `METRICS`.
    """

    def __init__(self, workers: int, metrics: tuple[str, ...] = ()) -> None:
        self.workers = workers
        self.names = tuple(dict.fromkeys((*METRICS, *metrics)))
        self._counters = torch.zeros(workers, len(Counter), dtype=torch.int64)
        self._metrics = torch.zeros(2, workers, len(self.names), dtype=torch.float64)  # sum and count of each
        self._games = torch.zeros(workers, GAMES_KEPT, 2, dtype=torch.float64)
        self._seconds = torch.zeros(workers, len(Part), dtype=torch.float64)
        self._errors = torch.zeros(workers, ERRORS_KEPT, ERROR_LENGTH, dtype=torch.uint8)
        self._word = torch.full((1,), RUN, dtype=torch.int64)
        self.heartbeats = Heartbeats(workers)
        self._read = [0] * workers
        self._errors_read = [0] * workers
        self._marked = self._metrics.numpy().sum(1)
        self._means: dict[str, float | None] = dict.fromkeys(self.names)
        self._pauses = 0
        self.meanwhile: Callable[[], object] = nothing
        """Called while the run waits for workers to pause."""

    def share_(self) -> None:
        """Move to shared memory, in place."""
        own = (
            self._counters,
            self._metrics,
            self._games,
            self._seconds,
            self._errors,
            self._word,
            self.heartbeats.tensor,
        )
        for tensor in own:
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    # -- what a worker writes --------------------------------------------------------------------------------------

    def count(self, worker: int, counter: Counter, by: int) -> None:
        """Add to one's own counter."""
        self.table[worker, counter] += by

    def record(self, worker: int, metrics: dict[str, float]) -> None:
        """Add the metrics of one update to one's own sums; a value that is not finite is left out.

        Raises:
            UsageError: a metric the algorithm did not announce, so there is no place for it.
        """
        total, count = self._metrics[:, worker].numpy()
        for name, value in metrics.items():
            if name not in self.names:
                raise UsageError(f"the loss returned the metric '{name}': name it in the algorithm's `metrics` too")
            if math.isfinite(value):
                total[self.names.index(name)] += value
                count[self.names.index(name)] += 1

    def game(self, worker: int, score: float, length: int) -> None:
        """Add a finished game; the count is raised last, so a reader never sees half of one."""
        index = int(self.table[worker, Counter.GAMES])
        self._games[worker, index % GAMES_KEPT] = torch.tensor([score, length], dtype=torch.float64)
        self.table[worker, Counter.GAMES] = index + 1

    def env_error(self, worker: int, sentence: str) -> None:
        """Add that one of its environments failed."""
        index = int(self.table[worker, Counter.ENV_ERRORS])
        text = sentence.encode()[:ERROR_LENGTH]
        place = self._errors.numpy()[worker, index % ERRORS_KEPT]
        place[: len(text)], place[len(text) :] = np.frombuffer(text, np.uint8), 0
        self.table[worker, Counter.ENV_ERRORS] = index + 1

    def spend(self, worker: int, part: Part, seconds: float) -> None:
        """Add to the time a worker has spent with a part."""
        self._seconds.numpy()[worker, PARTS.index(part)] += seconds

    def proceed(self, worker: int) -> bool:
        """Whether to go on; waits here, between updates, while the run is paused."""
        word = self._word.numpy()
        while (said := word[0]) > RUN:  # one look decides: it may change between two
            self.table[worker, Counter.PAUSED] = said
            self.heartbeats.beat(worker)
            time.sleep(0.005)
        return bool(said == RUN)

    def enter(self, worker: int) -> None:
        """From here on this worker changes things, so a pause has to wait for it."""
        self.table[worker, Counter.PAUSED] = RUN

    def leave(self, worker: int) -> None:
        """This worker changes nothing any more, so a pause need not wait for it."""
        self.table[worker, Counter.PAUSED] = LEFT

    # -- what the run reads and says -------------------------------------------------------------------------------

    @property
    def table(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """``[W, Counter]``, the live memory."""
        return self._counters.numpy()

    def starts(self, worker: int) -> int:
        """How often this worker has been replaced."""
        return int(self.table[worker, Counter.STARTS])

    @property
    def version(self) -> int:
        """How many updates θ has had, by all workers."""
        return int(self.table[:, Counter.UPDATES].sum())

    @property
    def steps(self) -> int:
        """Environment steps consumed by updates, by all workers."""
        return int(self.table[:, Counter.STEPS].sum())

    def spent(self) -> dict[Part, float]:
        """Seconds of all workers together, by part."""
        return dict(zip(PARTS, self._seconds.numpy().sum(0).tolist(), strict=True))

    def sampling(self) -> list[float]:
        """Seconds that each worker has spent on collecting rollouts."""
        seconds: list[float] = self._seconds.numpy()[:, [PARTS.index(part) for part in SAMPLING]].sum(1).tolist()
        return seconds

    def metrics(self) -> dict[str, float | None]:
        """Mean of each over the updates since the last `mark`, or what it was then when there were none."""
        totals, counts = self._metrics.numpy().sum(1) - self._marked
        return {
            name: float(f"{total / count:.9g}") if count else self._means[name]
            for name, total, count in zip(self.names, totals, counts, strict=True)
        }

    def mark(self) -> None:
        """Begin a new mean."""
        self._means = self.metrics()
        self._marked = self._metrics.numpy().sum(1)

    def new_games(self) -> list[Game]:
        """Games finished since the last call, oldest first within each worker."""
        games = []
        for worker in range(self.workers):
            last = int(self.table[worker, Counter.GAMES])
            for index in range(max(self._read[worker], last - GAMES_KEPT), last):
                score, length = self._games[worker, index % GAMES_KEPT].tolist()
                games.append(Game(score, int(length), worker))
            self._read[worker] = last
        return games

    def new_env_errors(self) -> list[tuple[int, str]]:
        """Worker and sentence of each since the last call; of very many only the newest."""
        found = []
        for worker in range(self.workers):
            last = int(self.table[worker, Counter.ENV_ERRORS])
            for index in range(max(self._errors_read[worker], last - ERRORS_KEPT), last):
                text = self._errors[worker, index % ERRORS_KEPT].numpy().tobytes()
                found.append((worker, text.rstrip(b"\0").decode(errors="replace")))
            self._errors_read[worker] = last
        return found

    def pause(self, deadline: float = 30.0, unless: Callable[[], bool] = never) -> bool:
        """Ask workers to wait between updates; True when all do so within the deadline (seconds), or have stopped.

        They are waited for no longer when `unless` says so.

        Each pause has a number, which a worker repeats when it heeds it: one that is only just waking from the pause
        before cannot be mistaken for one that waits.
        """
        if self._word[0] == STOP:
            return True
        self._pauses += 1
        self._word[0] = self._pauses
        end = time.monotonic() + deadline
        paused = self.table[:, Counter.PAUSED]
        while not ((paused == self._pauses) | (paused == LEFT)).all():
            self.meanwhile()  # one that dies never heeds it
            if time.monotonic() > end or unless():
                return False
            time.sleep(0.001)
        return True

    def __getstate__(self) -> dict[str, Any]:
        """What a worker gets of it."""
        return self.__dict__ | {"meanwhile": nothing}

    @contextmanager
    def paused(self, deadline: float = 30.0, unless: Callable[[], bool] = never) -> Iterator[bool]:
        """All workers wait inside; gives what `pause` says."""
        try:
            yield self.pause(deadline, unless)
        finally:
            self.resume()

    def resume(self) -> None:
        """Let paused workers go on."""
        if self._word[0] > RUN:
            self._word[0] = RUN

    def stop(self) -> None:
        """Ask workers to end after their current update."""
        self._word[0] = STOP

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        known = [(mean is not None, mean or 0.0) for mean in self._means.values()]
        means = torch.tensor(known, dtype=torch.float64)
        marked = torch.from_numpy(self._marked)
        own = {"counters": self._counters, "metrics": self._metrics, "marked": marked, "means": means}
        return {f"board.{name}": tensor for name, tensor in own.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint.

        With another number of workers the first takes all that was counted, and the metrics' means begin anew.
        """
        counters, metrics = saved["board.counters"], saved["board.metrics"]
        if metrics.shape == self._metrics.shape:
            self._counters.copy_(counters)
            self._metrics.copy_(metrics)
            self._marked = saved["board.marked"].numpy()
            means = saved["board.means"].tolist()
            self._means = {name: mean if known else None for name, (known, mean) in zip(self.names, means, strict=True)}
        else:
            self._counters.zero_()
            self._counters[0].copy_(counters.sum(0))
        self._counters[:, Counter.PAUSED] = 0
        self._read = [int(n) for n in self.table[:, Counter.GAMES]]
        self._errors_read = [int(n) for n in self.table[:, Counter.ENV_ERRORS]]


def scalars(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
