"""Counters, games, metrics and errors that workers report through shared memory, and the command to pause or stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyactor.errors import UsageError
from polyactor.shared.changes import Changes, Value
from polyactor.shared.heartbeat import Heartbeats
from polyactor.shared.timing import PARTS, SAMPLING, Part

METRICS = ("policy_lag", "gradient_staleness", "grad_norm", "entropy", "value_loss", "policy_loss", "learning_rate")
"""The metrics of every run; an algorithm may add more."""
GAMES_KEPT = 4096
"""Finished games that the circular buffer of each worker holds."""


class Counter(IntEnum):
    """The columns of the table of counters, which has a row per worker.

    STEPS are agent steps consumed by UPDATES. SKIPPED counts gradients that were not finite, SKIPPED_IN_A_ROW those
    since the last update. DROPPED counts gradients that a full queue lost, GAMES finished games, ENV_ERRORS failed
    environments, STARTS replacements of the worker, TURNS the turns of its role. PAUSED is no count: it is the number
    of the pause that the worker waits in, or RUN or LEFT.
    """

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
    """Do nothing: the default of `SharedCounters.meanwhile`."""


def never() -> bool:
    """Return False: the default condition for giving up a pause."""
    return False


RUN, STOP = 0, -1
"""Commands to all workers: to run or to stop. A number above 0 is the number of a pause."""
LEFT = -1
"""The value of `Counter.PAUSED` for a worker that has not started or has ended: a pause need not wait for it."""
ERRORS_KEPT, ERROR_LENGTH = 16, 512
"""Error messages that the circular buffer of each worker holds, and the most bytes of one."""


@dataclass(frozen=True)
class Game:
    """A finished game.

    Attributes:
        score: the sum of its unclipped rewards.
        length: its length in agent steps.
        worker: the worker that played it.
    """

    score: float
    length: int
    worker: int


class Report(NamedTuple):
    """What a worker of another machine has counted since its last report.

    Attributes:
        turns: turns of its role.
        games: score and length of each finished game.
        env_errors: a sentence about each environment that failed.
        seconds: the seconds spent on each part of its work.
    """

    turns: int
    games: list[tuple[float, int]]
    env_errors: list[str]
    seconds: dict[Part, float]


class Order(NamedTuple):
    """What a worker of another machine is told of the run.

    Attributes:
        version: the version of θ.
        steps: agent steps consumed by the updates of all workers.
        starts: how often this worker has been replaced.
        changes: the settings that have been changed since the run began, by dotted name.
    """

    version: int
    steps: int
    starts: int
    changes: dict[str, Value]


class SharedCounters:
    """Counts and reports of W workers, which the run's own process reads, and its command to them to pause or stop.

    There are no locks, because each number has one writer at a time.

    Args:
        workers: W.
        metrics: names of the metrics that the loss reports besides `METRICS`.
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
        self.changes = Changes()
        self._read = [0] * workers
        self._errors_read = [0] * workers
        self._marked = self._metrics.numpy().sum(1)
        self._means: dict[str, float | None] = dict.fromkeys(self.names)
        self._pauses = 0
        self.meanwhile: Callable[[], object] = nothing
        """A function that is called again and again while `pause` waits for the workers."""

    def share_(self) -> None:
        """Move all tensors to shared memory, in place."""
        own = (
            self._counters,
            self._metrics,
            self._games,
            self._seconds,
            self._errors,
            self._word,
            self.heartbeats.tensor,
            self.changes.tensor,
        )
        for tensor in own:
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    # -- for workers -----------------------------------------------------------------------------------------------

    def count(self, worker: int, counter: Counter, by: int) -> None:
        """Add a number to one of a worker's counters; each counter has one process that adds to it."""
        self.table[worker, counter] += by

    def record(self, worker: int, metrics: dict[str, float]) -> None:
        """Add the metrics of one update to a worker's sums; values that are not finite are left out.

        Raises:
            UsageError: the algorithm does not list a metric in its `metrics`.
        """
        total, count = self._metrics[:, worker].numpy()
        for name, value in metrics.items():
            if name not in self.names:
                raise UsageError(f"the loss returned the metric '{name}': name it in the algorithm's `metrics` too")
            if math.isfinite(value):
                total[self.names.index(name)] += value
                count[self.names.index(name)] += 1

    def game(self, worker: int, score: float, length: int) -> None:
        """Report a finished game, with its score and its length in agent steps."""
        index = int(self.table[worker, Counter.GAMES])
        self._games[worker, index % GAMES_KEPT] = torch.tensor([score, length], dtype=torch.float64)
        self.table[worker, Counter.GAMES] = index + 1  # last, so that no reader sees half a game

    def env_error(self, worker: int, sentence: str) -> None:
        """Report the failure of one of a worker's environments, with a sentence that says why."""
        index = int(self.table[worker, Counter.ENV_ERRORS])
        text = sentence.encode(errors="replace")[:ERROR_LENGTH]
        place = self._errors.numpy()[worker, index % ERRORS_KEPT]
        place[: len(text)], place[len(text) :] = np.frombuffer(text, np.uint8), 0
        self.table[worker, Counter.ENV_ERRORS] = index + 1

    def spend(self, worker: int, part: Part, seconds: float) -> None:
        """Add seconds to the time that a worker has spent on a part of its work."""
        self._seconds.numpy()[worker, PARTS.index(part)] += seconds

    def proceed(self, worker: int) -> bool:
        """Wait while the run is paused, then return whether the worker shall go on; called between two updates."""
        word = self._word.numpy()
        while (said := word[0]) > RUN:  # read once: the command may change between two reads
            self.table[worker, Counter.PAUSED] = said
            self.heartbeats.beat(worker)
            time.sleep(0.005)
        return bool(said == RUN)

    def stopped(self) -> Callable[[], bool]:
        """Return a function that returns whether the workers are asked to end, at little cost."""
        word: Any = memoryview(self._word.numpy())  # type: ignore[arg-type] # access takes half the time of an array's
        return lambda: bool(word[0] == STOP)

    def enter(self, worker: int) -> None:
        """Note that a worker starts to change the shared state, so that a pause waits for it."""
        self.table[worker, Counter.PAUSED] = RUN

    def leave(self, worker: int) -> None:
        """Note that a worker no longer changes the shared state, so that a pause does not wait for it."""
        self.table[worker, Counter.PAUSED] = LEFT

    # -- for a worker of another machine, which has counters of its own ---------------------------------------------

    def obey(self, worker: int, order: Order) -> None:
        """Take over what the run tells a worker; called in a process that runs this worker alone."""
        columns = [Counter.UPDATES, Counter.STEPS, Counter.STARTS]
        self.table[worker, columns] = order.version, order.steps, order.starts
        if order.changes != self.changes.made():
            self.changes.put(order.changes)

    def report(self, worker: int) -> Report:
        """Return what a worker has counted since its last report; called in a process that runs this worker alone."""
        row, seconds = self.table[worker], self._seconds.numpy()[worker]
        report = Report(
            int(row[Counter.TURNS]),
            [(game.score, game.length) for game in self.new_games()],
            [sentence for _, sentence in self.new_env_errors()],
            {part: spent for part, spent in zip(PARTS, seconds.tolist(), strict=True) if spent},
        )
        row[Counter.TURNS], seconds[:] = 0, 0.0
        return report

    # -- for the run's own process ---------------------------------------------------------------------------------

    def order(self, worker: int) -> Order:
        """Return what a worker of another machine is told now."""
        return Order(self.version, self.steps, self.starts(worker), self.changes.made())

    def take(self, worker: int, report: Report) -> None:
        """Add what a worker of another machine has reported."""
        for score, length in report.games:
            self.game(worker, score, length)
        for sentence in report.env_errors:
            self.env_error(worker, sentence)
        self.count(worker, Counter.TURNS, report.turns)
        for part, seconds in report.seconds.items():
            self.spend(worker, part, seconds)

    @property
    def table(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Return the counters ``[W, Counter]`` int64 as a view of the shared memory."""
        return self._counters.numpy()

    def starts(self, worker: int) -> int:
        """Return how often a worker has been replaced."""
        return int(self.table[worker, Counter.STARTS])

    @property
    def version(self) -> int:
        """Return the version of θ: the number of updates by all workers."""
        return int(self.table[:, Counter.UPDATES].sum())

    @property
    def steps(self) -> int:
        """Return the number of agent steps consumed by the updates of all workers."""
        return int(self.table[:, Counter.STEPS].sum())

    def spent(self) -> dict[Part, float]:
        """Return the seconds that all workers together have spent on each part of their work."""
        return dict(zip(PARTS, self._seconds.numpy().sum(0).tolist(), strict=True))

    def sampling(self) -> list[float]:
        """Return the seconds that each worker has spent on collecting rollouts."""
        seconds: list[float] = self._seconds.numpy()[:, [PARTS.index(part) for part in SAMPLING]].sum(1).tolist()
        return seconds

    def metrics(self) -> dict[str, float | None]:
        """Return the mean of each metric over the updates since the last `mark`, or the mean before it if none came."""
        totals, counts = self._metrics.numpy().sum(1) - self._marked
        return {
            name: float(f"{total / count:.9g}") if count else self._means[name]
            for name, total, count in zip(self.names, totals, counts, strict=True)
        }

    def mark(self) -> None:
        """Start new means of the metrics with the next update."""
        self._means = self.metrics()
        self._marked = self._metrics.numpy().sum(1)

    def new_games(self) -> list[Game]:
        """Return the games finished since the last call, by worker and then by time."""
        games = []
        for worker in range(self.workers):
            last = int(self.table[worker, Counter.GAMES])
            for index in range(max(self._read[worker], last - GAMES_KEPT), last):
                score, length = self._games[worker, index % GAMES_KEPT].tolist()
                games.append(Game(score, int(length), worker))
            self._read[worker] = last
        return games

    def new_env_errors(self) -> list[tuple[int, str]]:
        """Return worker and sentence of each failed environment since the last call: the newest, if very many."""
        found = []
        for worker in range(self.workers):
            last = int(self.table[worker, Counter.ENV_ERRORS])
            for index in range(max(self._errors_read[worker], last - ERRORS_KEPT), last):
                text = self._errors[worker, index % ERRORS_KEPT].numpy().tobytes()
                found.append((worker, text.rstrip(b"\0").decode(errors="replace")))
            self._errors_read[worker] = last
        return found

    def pause(self, deadline: float = 30.0, unless: Callable[[], bool] = never) -> bool:
        """Ask all workers to wait between updates, and return whether all of them do (or have ended).

        Each pause has a number, which a worker copies into its row when it begins to wait. So a worker that is still
        waking from the pause before is not mistaken for one that waits.

        Args:
            deadline: seconds until the workers are no longer waited for.
            unless: a condition on which they are no longer waited for either.
        """
        if self._word[0] == STOP:
            return True
        self._pauses += 1
        self._word[0] = self._pauses
        end = time.monotonic() + deadline
        paused = self.table[:, Counter.PAUSED]
        while not ((paused == self._pauses) | (paused == LEFT)).all():
            self.meanwhile()  # such as to notice workers that died
            if time.monotonic() > end or unless():
                return False
            time.sleep(0.001)
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle for a worker: all but `meanwhile`, which belongs to the run's own process."""
        return self.__dict__ | {"meanwhile": nothing}

    @contextmanager
    def paused(self, deadline: float = 30.0, unless: Callable[[], bool] = never) -> Iterator[bool]:
        """Pause all workers inside the with block; its value is that of `pause`, whose arguments these are."""
        try:
            yield self.pause(deadline, unless)
        finally:
            self.resume()

    def resume(self) -> None:
        """Let all paused workers go on."""
        if self._word[0] > RUN:
            self._word[0] = RUN

    def stop(self) -> None:
        """Ask all workers to end, between two steps of an environment or after their current update."""
        self._word.numpy()[0] = STOP  # not by torch: a handler of signals calls this, wherever torch is

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint saves, by name."""
        known = [(mean is not None, mean or 0.0) for mean in self._means.values()]
        means = torch.tensor(known, dtype=torch.float64)
        marked = torch.from_numpy(self._marked)
        own = {"counters": self._counters, "metrics": self._metrics, "marked": marked, "means": means}
        return {f"board.{name}": tensor for name, tensor in own.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the counters and metrics of a checkpoint.

        If it has another number of workers, worker 0 gets the sums of all counters and the metrics start anew.
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
    """Return metrics as Python floats."""
    return {name: float(value) for name, value in metrics.items()}
