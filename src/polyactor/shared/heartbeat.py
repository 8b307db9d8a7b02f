"""Heartbeats in shared memory: when each worker last gave a sign of life, and how long an environment has not answered.

Each row is written by one worker. The run's own process reads all rows to find workers that hang.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import torch

from polyactor.data import leaves
from polyactor.system.deadline import Call as Call

BEAT, SINCE, ENV, STEP, COUNT, ACTION = range(6)
"""Columns of a row: time of the last sign of life, time when an environment was asked for a step (0: no environment is
being asked), number of that environment, steps answered so far, count of the action's numbers (below 0: a `Call`), and
from ACTION on those numbers. Times are seconds of the monotonic clock."""
TIMES = [BEAT, SINCE]
NUMBERS_KEPT = 16
"""Numbers of an action that are recorded."""
ALL = -1
"""The value of the column ENV when all environments of a worker are asked at once."""
SLOW = 1e-3
"""Seconds that an environment took to answer above which `Heartbeat.attend` is called before the next is asked."""


def nothing() -> None:
    """Do nothing: the default of `Heartbeat.attend`."""


class Heartbeat:
    """Writes the row of one worker.

    Args:
        row: ``[ACTION + NUMBERS_KEPT]`` float64, a view of shared memory.
    """

    def __init__(self, row: np.ndarray) -> None:
        self.row = row
        self.cells: Any = memoryview(row)  # type: ignore[arg-type] # access takes half the time of an array's
        self.cells[SINCE] = 0.0
        self.attend: Callable[[], object] = nothing
        """A function called between two calls of environments, in each step of all and after each slow answer. What it
        raises ends the step, so that a run that stops need not wait for the other environments."""

    def asked(self, env: int, action: Any, call: Call = Call.RESET) -> None:
        """Record that an environment begins a step with this action, or a `call` if the action is None."""
        cells = self.cells
        now = monotonic()
        if (env < 0 or now - cells[SINCE] > SLOW) and (action is not None or call is not Call.CLOSE):
            self.attend()
        cells[SINCE] = now  # first: a reader that sees the other columns change then sees no time waited
        cells[ENV] = env
        if isinstance(action, dict | tuple):
            action = np.concatenate([np.ravel(part) for part in leaves(action)])
        if action is None:
            cells[COUNT] = call
        elif isinstance(action, np.ndarray):
            count = min(action.size, NUMBERS_KEPT)
            self.row[ACTION : ACTION + count] = action.reshape(-1)[:count]
            cells[COUNT] = count
        else:
            cells[ACTION] = action
            cells[COUNT] = 1

    def answered(self) -> None:
        """Record that all environments asked have answered, which is a sign of life."""
        cells = self.cells
        cells[BEAT], cells[SINCE] = monotonic(), 0.0
        cells[STEP] += 1


class Heartbeats:
    """The heartbeats of W workers: a tensor ``[W, ACTION + NUMBERS_KEPT]`` with a row per worker.

    Args:
        workers: W.
    """

    def __init__(self, workers: int) -> None:
        self.tensor = torch.zeros(workers, ACTION + NUMBERS_KEPT, dtype=torch.float64)

    def heartbeat(self, worker: int) -> Heartbeat:
        """Return the object with which a worker writes its row."""
        return Heartbeat(self.tensor.numpy()[worker])

    def beat(self, worker: int) -> None:
        """Record a sign of life of a worker; called in that worker."""
        self.tensor.numpy()[worker, BEAT] = monotonic()

    def begin(self, worker: int) -> None:
        """Reset the row of a worker whose process is being started."""
        row = self.tensor.numpy()[worker]
        row[:] = 0.0
        row[BEAT] = monotonic()

    def ages(self, worker: int) -> np.ndarray:
        """Return a copy of a worker's row with ages for times, since another machine's clock has another zero."""
        row: np.ndarray = self.tensor.numpy()[worker].copy()
        row[TIMES] = np.where(row[TIMES] > 0, monotonic() - row[TIMES], np.nan)
        return row

    def rebase(self, worker: int, ages: np.ndarray) -> None:
        """Write a worker's row as `ages` returned it on the worker's machine a moment ago."""
        row = ages.copy()
        row[TIMES] = np.nan_to_num(monotonic() - row[TIMES], nan=0.0)
        self.tensor.numpy()[worker] = row

    def again(self, worker: int) -> None:
        """Restart the deadline of the step or reset that a worker waits for."""
        self.tensor.numpy()[worker, SINCE] = monotonic()

    def hanging(self, worker: int, timeout: float) -> str | None:
        """Return a sentence about the environment that has missed its deadline, or None if none has.

        Args:
            worker: the number of the worker.
            timeout: the deadline of a step in seconds; that of a `Call` is `Call.factor` times as long.
        """
        row, now = self.tensor.numpy()[worker].copy(), monotonic()
        waited = now - row[SINCE]
        if row[SINCE] > 0:
            if waited <= timeout * (Call(int(row[COUNT])).factor if row[COUNT] < 0 else 1):
                return None
            return f"{_who(row)} not answered for {waited:.0f} s, {_where(row)}"
        return None

    def silence(self, worker: int) -> float:
        """Return the seconds since a worker's last sign of life, or 0 while it waits for an environment."""
        row = self.tensor.numpy()[worker].copy()
        return monotonic() - float(row[BEAT]) if row[SINCE] == 0 < row[BEAT] else 0.0

    def asked(self, worker: int) -> str | None:
        """Return a sentence about the environment that a worker waits for, or None if it waits for none."""
        row = self.tensor.numpy()[worker].copy()
        return f"{_who(row)} not answered, {_where(row)}" if row[SINCE] > 0 else None


def _who(row: np.ndarray) -> str:
    return "the environments have" if row[ENV] == ALL else f"environment {int(row[ENV])} has"


def _where(row: np.ndarray) -> str:
    numbers = [f"{number:.4g}" for number in row[ACTION : ACTION + max(0, int(row[COUNT]))]]
    last = f"in a {Call(int(row[COUNT]))}" if row[COUNT] < 0 else f"after the action {', '.join(numbers)}"
    return f"in step {int(row[STEP]):,}, {last}"
