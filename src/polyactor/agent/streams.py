"""Independent random streams for the environments, the actor and the learner of each worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

EVALUATION_STREAM = 1 << 20
"""The worker number whose streams evaluations use, greater than that of any worker."""
GLOBAL_STREAM = EVALUATION_STREAM + 1
"""The worker number whose stream seeds the global streams, for environments of this process that draw from them."""

DRAWING = {torch.rand, torch.randn, torch.randint, torch.randperm, torch.Tensor.normal_, torch.Tensor.uniform_}
"""Functions by which a network of one's own may draw."""


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


class Drawing(TorchFunctionMode):
    """Inside the with block, layers draw their initial parameters from one stream and not from torch's global one.

    Only the thread that enters the block is affected.

    Args:
        seed: the seed of the stream, which gives the numbers that the global one would give after `torch.manual_seed`.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, with the stream if it takes a generator and was given none."""
        given = dict(kwargs or {})
        if given.get("generator") is None and ("generator" in given or func in DRAWING):
            given["generator"] = self.generator
        return func(*args, **given)
