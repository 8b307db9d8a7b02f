"""The terms losses are made of: ``[T, B]`` in, a scalar out, fake rows masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["mean", "sum"]
"""How a loss over real rows becomes a scalar; see docs/algorithms/a2c.md for what it does to clipping and ε."""


def weights(mask: Tensor, reduction: Reduction) -> Tensor:
    """``w [T, B]`` with ``Σ w x`` the sum of x, or its mean, over real rows; 0 (not NaN) when every row is fake."""
    return mask if reduction == "sum" else mask / mask.sum().clamp(min=1.0)


def weighted(x: Tensor, w: Tensor) -> Tensor:
    """``Σ w x`` of ``[T, B]`` each."""
    return (x * w).sum()


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """``−log π(a_t|x_t) A_t``, per row; its gradient is the policy gradient's negative. A_t is a constant."""
    return -log_prob * advantage.detach()


def squared_error(value: Tensor, target: Tensor) -> Tensor:
    """``(R_t − V(x_t))²``, per row, without a ½; the target is a constant."""
    return (target.detach() - value) ** 2


def huber_error(value: Tensor, target: Tensor) -> Tensor:
    """``(R_t − V(x_t))²`` up to an error of 1, ``2|R_t − V(x_t)| − 1`` beyond, per row; the target is a constant.

    Twice Huber's loss, so that a coefficient weighs small errors as it does those of `squared_error`.
    """
    error = (target.detach() - value).abs()
    near = error.clamp(max=1)
    return near * (2 * error - near)


def normalized(advantage: Tensor, mask: Tensor) -> Tensor:
    """``(A − mean) / std`` over real rows, population std; unchanged when fewer than two rows are real."""
    count = mask.sum()
    n = count.clamp(min=1.0)
    centred = (advantage - (advantage * mask).sum() / n) * mask
    deviation = (centred.square().sum() / n).sqrt() + 1e-8
    return advantage.where(count < 2, centred / deviation)


def clipped_surrogate(rho: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """``−min(ρ A, clip(ρ, 1−ε, 1+ε) A)``, per row (Schulman et al. 2017, eq. 7).

    Its gradient is 0 exactly where A > 0 and ρ > 1+ε, or A < 0 and ρ < 1−ε.
    """
    a = advantage.detach()
    return -(rho * a).minimum(rho.clamp(1 - clip, 1 + clip) * a)


def clipped_error(value: Tensor, target: Tensor, old_value: Tensor, clip: float | None) -> Tensor:
    """``max((R − V)², (R − V_old − clip(V − V_old, ±ε))²)``, per row; without a clip ``(R − V)²``."""
    error = squared_error(value, target)
    if clip is None:
        return error
    near = old_value + (value - old_value).clamp(-clip, clip)
    return error.maximum(squared_error(near, target))
