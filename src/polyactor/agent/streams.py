"""Independent random streams for the environments, the actor and the learner of each worker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

EVALUATION_STREAM = 1 << 20
"""The worker number whose streams evaluations use, greater than that of any worker."""


@dataclass(frozen=True)
class Streams:
    """The random streams of one worker.

    Attributes:
        env: the seed of the environments.
        act: the stream that samples actions.
        learn: the stream of the algorithm, such as for minibatches.
    """

    env: int
    act: torch.Generator
    learn: torch.Generator

    @classmethod
    def of(cls, seed: int, worker: int, start: int = 0, *, again: int = 0, device: str = "cpu") -> Streams:
        """Derive the streams of a worker; each combination of the arguments but `device` gives other streams.

        Args:
            seed: the seed of the run.
            worker: the number of the worker.
            start: the number of updates before, so that a resumed run draws new numbers.
            again: how often the worker has been replaced.
            device: the device of the learner's stream.
        """
        own = np.random.SeedSequence([seed, start, worker, again])
        env, act, learn = own.generate_state(3, np.uint32).tolist()
        return cls(env >> 1, torch.Generator().manual_seed(act), torch.Generator(device).manual_seed(learn))
