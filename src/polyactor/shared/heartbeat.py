"""Signs of life: when a worker last did anything, and which environment has not answered since when.

Each row of the shared memory has one writer, its worker; the run reads it to tell who hangs.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import numpy as np
import torch

BEAT, SINCE, ENV, STEP, COUNT, ACTION = range(6)
"""Columns: last sign of life, when the environment was asked (0: nobody is), which one, vector steps answered, how many
numbers the action has (−1: it was a reset), and those."""
NUMBERS_KEPT = 16
"""Of an action."""
ALL = -1
"""In the column ENV: all environments of the worker at once."""
RESET_FACTOR = 5
"""A reset may take so many times as long as a step."""


class Heartbeat:
    """One worker's row, as that worker writes it.

    Args:
        row: ``[ACTION + NUMBERS_KEPT]`` float64, shared.
    """

    def __init__(self, row: np.ndarray) -> None:
        self.row = row
        self.cells: Any = memoryview(row)  # type: ignore[arg-type] # an item costs half of an array's
        self.cells[SINCE] = 0.0

    def asked(self, env: int, action: Any) -> None:
        """Environment `env` begins a step with this action, or a reset (None)."""
        cells = self.cells
        cells[SINCE] = monotonic()  # first: what is allowed depends on the rest
        cells[ENV] = env
        if action is None:
            cells[COUNT] = -1
        elif isinstance(action, np.ndarray):
            count = min(action.size, NUMBERS_KEPT)
            self.row[ACTION : ACTION + count] = action.reshape(-1)[:count]
            cells[COUNT] = count
        else:
            cells[ACTION] = action
            cells[COUNT] = 1

    def answered(self) -> None:
        """All of them have."""
        cells = self.cells
        cells[BEAT], cells[SINCE] = monotonic(), 0.0
        cells[STEP] += 1


class Heartbeats:
    """The rows of W workers.

    Args:
        workers: W.
    """

    def __init__(self, workers: int) -> None:
        self.tensor = torch.zeros(workers, ACTION + NUMBERS_KEPT, dtype=torch.float64)

    def heartbeat(self, worker: int) -> Heartbeat:
        """To write to, in the worker."""
        return Heartbeat(self.tensor.numpy()[worker])

    def beat(self, worker: int) -> None:
        """This worker lives; written by itself."""
        self.tensor.numpy()[worker, BEAT] = monotonic()

    def begin(self, worker: int) -> None:
        """A process for this worker is being started."""
        row = self.tensor.numpy()[worker]
        row[:] = 0.0
        row[BEAT] = monotonic()

    def again(self, worker: int) -> None:
        """What this worker has asked for it is given as much time once more."""
        self.tensor.numpy()[worker, SINCE] = monotonic()

    def hanging(self, worker: int, timeout: float) -> str | None:
        """Which environment this worker hangs in, in words, or None while all is well.

        Args:
            worker: which.
            timeout: seconds that an environment's step may take.
        """
        row, now = self.tensor.numpy()[worker].copy(), monotonic()
        waited = now - row[SINCE]
        if row[SINCE] > 0:
            if waited <= timeout * (RESET_FACTOR if row[COUNT] < 0 else 1):
                return None
            return f"{_who(row)} not answered for {waited:.0f} s, {_where(row)}"
        return None

    def silence(self, worker: int) -> float:
        """Seconds since its last sign of life; 0 while an environment is asked, which has a deadline of its own."""
        row = self.tensor.numpy()[worker].copy()
        return monotonic() - float(row[BEAT]) if row[SINCE] == 0 < row[BEAT] else 0.0

    def asked(self, worker: int) -> str | None:
        """Which environment of this worker has not answered yet, in words; None where all have."""
        row = self.tensor.numpy()[worker].copy()
        return f"{_who(row)} not answered, {_where(row)}" if row[SINCE] > 0 else None


def _who(row: np.ndarray) -> str:
    return "the environments have" if row[ENV] == ALL else f"environment {int(row[ENV])} has"


def _where(row: np.ndarray) -> str:
    numbers = [f"{number:.4g}" for number in row[ACTION : ACTION + max(0, int(row[COUNT]))]]
    last = "in a reset" if row[COUNT] < 0 else f"after the action {', '.join(numbers)}"
    return f"in step {int(row[STEP]):,}, {last}"
