"""Settings that are changed while a run goes on, on their way to all workers through shared memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import attrgetter
from typing import TypeVar

import numpy as np
import torch

from polyactor.errors import UsageError
from polyactor.fields import replace_at

T = TypeVar("T")

Value = float | None
"""A value of a setting that can change: a number, or None where the setting may be none."""
BEGUN, ENDED, TEXT = 0, 1, 2
"""Words of the shared memory: the number of writes begun, and of writes ended; the text starts at the third."""
MOST_BYTES = 1 << 14
"""Most bytes of all changes together, as JSON: some 300 settings."""


class Changes:
    """The settings of the algorithm and the optimizer that have been changed since the run began.

    The run's own process writes them. Workers read them before each rollout and each update, at the cost of one
    comparison while nothing is new; a worker that replaces a lost one finds them, too.

    Attributes:
        tensor: the shared memory, int64.
    """

    def __init__(self) -> None:
        self.tensor = torch.zeros(TEXT + MOST_BYTES // 8, dtype=torch.int64)
        self._values: dict[str, Value] = {}
        self._read = 0

    def put(self, values: Mapping[str, Value]) -> None:
        """Replace all changes; only the run's own process calls this, and in one thread.

        Args:
            values: the new values by dotted name, such as ``algorithm.entropy_coef``.

        Raises:
            UsageError: there are too many of them.
        """
        text = json.dumps(dict(values), allow_nan=False).encode()
        if len(text) > MOST_BYTES:
            raise UsageError(f"{len(values)} settings cannot be changed during one run: their names are too long")
        memory = self.tensor.numpy()
        memory[BEGUN] += 1
        memory[TEXT:].view(np.uint8)[:] = np.frombuffer(text.ljust(MOST_BYTES), np.uint8)
        memory[ENDED] += 1

    def made(self) -> dict[str, Value]:
        """Return the changed settings by dotted name: the newest, or the ones before while a write is under way."""
        memory = self.tensor.numpy()
        ended = memory[ENDED]
        if ended != self._read:
            text = memory[TEXT:].tobytes()
            if memory[BEGUN] == ended:  # no write has overlapped
                self._values, self._read = json.loads(text), int(ended)
        return self._values

    def into(self, section: str, part: T) -> T:
        """Return a section of a worker's config with the changed settings in place.

        Args:
            section: "algorithm" or "optimizer".
            part: the section; it is returned itself where it has the values already.
        """
        for path, value in self.made().items():
            home, _, name = path.partition(".")
            if home == section and attrgetter(name)(part) != value:
                part = replace_at(part, name, value)
        return part
