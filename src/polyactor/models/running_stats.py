"""Running means and variances as buffers of the model, so that they are copied and saved together with θ."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polyactor.data import Moments

LARGEST_SQUARE = 1e37
"""Sums of squared deviations above this are refused, since variances are float32."""


class RunningMoments(nn.Module):
    """The mean and variance of all samples so far (Chan et al. 1983).

    Acting and differentiating read them; `merge` changes them when an update is applied.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))


def blank_moments(rows: int, shape: tuple[int, ...]) -> Moments:
    """Allocate `rows` rows of moments without samples for a statistic of this shape, in float64."""
    one = blank_row(shape)
    return Moments(*(part.new_zeros(rows, *part.shape) for part in one))


def blank_row(shape: tuple[int, ...]) -> Moments:
    """Allocate moments without samples for a statistic of this shape, without the axis of actors, in float64."""
    zeros = torch.zeros(shape, dtype=torch.double)
    return Moments(torch.zeros((), dtype=torch.double), zeros, zeros.clone())


def can_merge(new: Moments) -> bool:
    """Return whether moments are small enough for the float32 buffers to stay finite when they are merged."""
    return bool(new.m2.amax() < LARGEST_SQUARE) and bool(new.mean.abs().amax() < LARGEST_SQUARE**0.5)


def why_skipped(moments: Mapping[str, Moments]) -> str:
    """Say why an update with these moments was skipped, and what to do, as the rest of a sentence about updates."""
    for name, new in moments.items():
        if not can_merge(new):
            count, mean, m2 = new
            size = float(max(mean.abs().amax(), (m2.amax() / count.amax().clamp(min=1)).sqrt()))
            said = f"of about {size:.0e}" if math.isfinite(size) else "beyond 3e+38"
            what, way = "returns (discounted sums of rewards)", "reward with --normalize.clip-reward 1"
            if name.startswith("observation"):
                what, way = "observations", "observation"
            return (
                f"updates in a row were skipped, so the run stopped: {what} {said} have squares too large "
                f"for float32; make the environment's numbers smaller, or use --normalize.no-{way}"
            )
    return (
        "gradients in a row were not finite, so the run stopped: the loss is too large for float32; lower "
        "--optimizer.lr, or make rewards smaller (--normalize.reward, --normalize.clip-reward)"
    )


def merge(buffers: Mapping[str, Tensor], name: str, new: Moments) -> None:
    """Add samples to the buffers ``{name}.count``, ``.mean`` and ``.variance`` in place, one row after the other.

    The arithmetic is in float64, since counts grow beyond the integers that float32 can represent.
    """
    count, mean, variance = (buffers[f"{name}.{part}"] for part in ("count", "mean", "variance"))
    for new_count, new_mean, new_m2 in zip(*new, strict=True):
        if new_count == 0:
            continue
        n, m = count.double(), new_count.double()
        total = n + m
        delta = new_mean.double() - mean.double()
        m2 = variance.double() * n + new_m2.double() + delta**2 * (n * m / total)
        mean.add_(delta * (m / total))
        variance.copy_(m2 / total)
        count.copy_(total)


def moments(samples: Tensor, weight: Tensor | None = None) -> Moments:
    """Compute the moments of ``samples [N, *shape]`` over the first axis, as one row.

    Args:
        samples: ``[N, *shape]``.
        weight: ``[N]`` 1 for samples that count and 0 for those that do not; None counts all.
    """
    x = samples.double()
    w = torch.ones(len(x), dtype=torch.double) if weight is None else weight.double()
    w_column = w.view(-1, *[1] * (x.dim() - 1))
    count = w.sum()
    mean = (x * w_column).sum(0) / count.clamp(min=1)
    m2 = (((x - mean) ** 2) * w_column).sum(0)
    return Moments(count.unsqueeze(0), mean.unsqueeze(0), m2.unsqueeze(0))
