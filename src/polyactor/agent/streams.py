"""The independent random streams of a worker, all from the run's seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

EVALUATION_STREAM = 1 << 20
"""Stream number of evaluations: far from any worker's."""


@dataclass(frozen=True)
class Streams:
    """The independent random streams of one worker, all from the run's seed."""

    env: int
    act: torch.Generator
    learn: torch.Generator

    @classmethod
    def of(cls, seed: int, worker: int, start: int = 0, *, again: int = 0, device: str = "cpu") -> Streams:
        """Of this worker, so that it does not repeat itself.

        Args:
            seed: of the run.
            worker: whose.
            start: the update count it continues from.
            again: how many have played this worker before.
            device: of what learning draws from.
        """
        own = np.random.SeedSequence([seed, start, worker, again])
        env, act, learn = own.generate_state(3, np.uint32).tolist()
        return cls(env >> 1, torch.Generator().manual_seed(act), torch.Generator(device).manual_seed(learn))
