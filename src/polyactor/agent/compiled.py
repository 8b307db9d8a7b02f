"""Gradients by torch.compile, for networks so small that most of the time goes into calling operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyactor.algorithms.base import Algorithm
from polyactor.data import Batch, Metrics
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic

LONGEST_REASON = 300
"""Characters of a compiler's error message that are shown."""
ROUNDING = 1e-4
"""Largest accepted difference between the compiled and the plain gradient, as a share of the gradient's norm."""

GradientFunction = Callable[[Algorithm, ActorCritic, Batch], tuple[tuple[Tensor, ...], Metrics]]


def compiled(plain: GradientFunction) -> GradientFunction:
    """Return a gradient function compiled by torch.compile: a few C++ functions in place of some hundred calls.

    Each new batch size is compiled. The first batch of each size is also differentiated by the plain function, because
    torch 2.13 once compiled a wrong gradient of a bias for a single batch size.

    The function returned raises a UsageError when the compiler fails or its gradient is wrong.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    fast: GradientFunction = torch.compile(plain)
    checked: set[torch.Size] = set()

    def run(algorithm: Algorithm, model: ActorCritic, batch: Batch) -> tuple[tuple[Tensor, ...], Metrics]:
        before = dynamo.trace_autograd_ops, inductor.compile_threads
        dynamo.trace_autograd_ops = True  # the backward pass belongs to the same graph
        inductor.compile_threads = 1  # compile in this process: each worker would start a pool of compilers
        try:
            dtheta, metrics = fast(algorithm, model, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = " ".join(str(error).split())[:LONGEST_REASON]
            raise UsageError(f"--compile does not work here, learn without it: {why}") from error
        finally:  # they are those of the whole process
            dynamo.trace_autograd_ops, inductor.compile_threads = before
        size = batch.rollout.reward.shape
        if size not in checked:
            _same(dtheta, plain(algorithm, model, batch)[0], size)
            checked.add(size)
        return dtheta, metrics

    return run


def _same(fast: tuple[Tensor, ...], plain: tuple[Tensor, ...], size: torch.Size) -> None:
    """Check a compiled gradient against the plain one; raise a UsageError if they differ by more than `ROUNDING`."""
    difference = torch.stack([(ours - theirs).norm() for ours, theirs in zip(fast, plain, strict=True)]).norm()
    share = float(difference / torch.stack([each.norm() for each in plain]).norm().clamp(min=1e-30))
    if share > ROUNDING:
        raise UsageError(
            f"--compile is at fault here, learn without it: for batches of {' × '.join(map(str, size))} "
            f"torch's compiler gives a gradient that is off by {share:.1%}"
        )
