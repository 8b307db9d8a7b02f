"""The gradient of a loss by code that is compiled from its equations, for networks whose cost is that of calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyactor.algorithms.base import Algorithm
from polyactor.data import Batch, Metrics
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic

LONGEST_REASON = 300
"""Characters of what a compiler says."""
ROUNDING = 1e-4
"""Of a gradient's norm: what compiled code may differ by."""

GradientFunction = Callable[[Algorithm, ActorCritic, Batch], tuple[tuple[Tensor, ...], Metrics]]


def compiled(plain: GradientFunction) -> GradientFunction:
    """The same function by torch.compile: both passes as a few C++ functions instead of some hundred calls.

    A batch of another size is compiled anew. Another form of this function got a bias's gradient wrong, for one size of
    batch (torch 2.13). So the first batch of each size is differentiated by the plain code as well.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    dynamo.trace_autograd_ops = True  # the backward pass belongs to the same graph
    inductor.compile_threads = 1  # in this process: no pool of others beside every worker
    fast: GradientFunction = torch.compile(plain)
    checked: set[torch.Size] = set()

    def run(algorithm: Algorithm, model: ActorCritic, batch: Batch) -> tuple[tuple[Tensor, ...], Metrics]:
        try:
            dtheta, metrics = fast(algorithm, model, batch)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            why = " ".join(str(error).split())[:LONGEST_REASON]
            raise UsageError(f"--compile does not work here, learn without it: {why}") from error
        size = batch.rollout.reward.shape
        if size not in checked:
            _same(dtheta, plain(algorithm, model, batch)[0], size)
            checked.add(size)
        return dtheta, metrics

    return run


def _same(fast: tuple[Tensor, ...], plain: tuple[Tensor, ...], size: torch.Size) -> None:
    difference = torch.stack([(ours - theirs).norm() for ours, theirs in zip(fast, plain, strict=True)]).norm()
    share = float(difference / torch.stack([each.norm() for each in plain]).norm().clamp(min=1e-30))
    if share > ROUNDING:
        raise UsageError(
            f"--compile is at fault here, learn without it: for batches of {' × '.join(map(str, size))} "
            f"torch's compiler gives a gradient that is off by {share:.1%}"
        )
