"""Running mean and variance as buffers, so that they travel, publish and checkpoint with θ."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polyactor.data import Moments

LARGEST_SQUARE = 1e37


class RunningMoments(nn.Module):
    """Mean and variance of all samples merged so far (Chan et al. 1983).

    They are read while a rollout is collected and differentiated; `merge` changes them when an update is applied.
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
    """Rows without a sample, in float64."""
    one = blank_row(shape)
    return Moments(*(part.new_zeros(rows, *part.shape) for part in one))


def blank_row(shape: tuple[int, ...]) -> Moments:
    """One row of the moments of a statistic of this shape, without the axis of sources; in float64."""
    zeros = torch.zeros(shape, dtype=torch.double)
    return Moments(torch.zeros((), dtype=torch.double), zeros, zeros.clone())


def can_merge(new: Moments) -> bool:
    """Whether the buffers stay finite: variances are kept in float32, and squares of what fits there need not."""
    return bool(new.m2.amax() < LARGEST_SQUARE) and bool(new.mean.abs().amax() < LARGEST_SQUARE**0.5)


def merge(buffers: Mapping[str, Tensor], name: str, new: Moments) -> None:
    """Add samples to the buffers ``{name}.count``, ``.mean`` and ``.variance``, in place, row by row.

    Arithmetic in float64: counts grow past the integers float32 can hold.
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
    """Moments of ``samples [N, *shape]`` over the first axis, rows weighted 0 or 1 by ``weight [N]``; one row."""
    x = samples.double()
    w = torch.ones(len(x), dtype=torch.double) if weight is None else weight.double()
    w_column = w.view(-1, *[1] * (x.dim() - 1))
    count = w.sum()
    mean = (x * w_column).sum(0) / count.clamp(min=1)
    m2 = (((x - mean) ** 2) * w_column).sum(0)
    return Moments(count.unsqueeze(0), mean.unsqueeze(0), m2.unsqueeze(0))
