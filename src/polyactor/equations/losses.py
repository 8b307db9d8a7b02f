"""The terms that losses are made of, per row ``[T, B]``, and the weights that reduce them to a scalar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-30
"""Squared norms are clamped to at least this before they divide."""

Reduction = Literal["mean", "sum"]
"""How a loss is reduced over real rows; docs/algorithms/a2c.md says what this means for gradient clipping and ε."""


def weights(mask: Tensor, reduction: Reduction) -> Tensor:
    """Weights ``w [T, B]`` such that ``Σ w x`` is the mean or the sum of x over real rows; all 0 if no row is real.

    Args:
        mask: ``[T, B]`` 1 at real rows, 0 at fake ones.
        reduction: mean or sum.
    """
    return mask if reduction == "sum" else mask / mask.sum().clamp(min=1.0)


def weighted(x: Tensor, w: Tensor) -> Tensor:
    """``Σ w x``, a scalar, of x and weights w ``[T, B]`` each."""
    return (x * w).sum()


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """``−log π(a_t|x_t) A_t`` per row, whose gradient is minus the policy gradient; A_t is held constant."""
    return -log_prob * advantage.detach()


def importance_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """``−π(a_t|x_t)/π_old(a_t|x_t) A_t`` per row, with the gradient of `policy_gradient` at π = π_old."""
    return -(log_prob - old_log_prob.detach()).exp() * advantage.detach()


def truncated_weights(
    log_p: Tensor, log_rho: Tensor, action: Tensor, q: Tensor, q_ret: Tensor, v: Tensor, c: float
) -> Tensor:
    """ACER's weights of ∇ log π(a|x_t) for every action, ``[T, B, A]``, constants (Wang et al. 2017, eq. 7 and 9).

    Every action has the weight ``π(a) [1 − c/ρ(a)]₊ (Q(a) − V)``, the bias correction; the action taken has besides
    ``min(c, ρ(a_t)) (Q^ret_t − V)``, the truncated importance weight. If Q^ret = Q, the weighted sum has the
    expectation ∇ Σ_a π(a) Q(a) under μ for every c.

    Args:
        log_p: ``[T, B, A]`` log π(·|x_t).
        log_rho: ``[T, B, A]`` log π(·|x_t) − log μ(·|x_t).
        action: ``[T, B]`` a_t.
        q: ``[T, B, A]`` Q(x_t, ·).
        q_ret: ``[T, B]`` Q^ret_t.
        v: ``[T, B]`` V(x_t) = Σ_a π(a) Q(a).
        c: the truncation of importance weights.
    """
    taken, v = action.unsqueeze(-1), v.unsqueeze(-1)
    truncation = log_rho.gather(-1, taken).exp().clamp(max=c) * (q_ret.unsqueeze(-1) - v)
    correction = log_p.exp() * _beyond(log_rho, c) * (q - v)
    return correction.scatter_add(-1, taken, truncation).detach()


def sampled_weights(log_rho: Tensor, advantage: Tensor, c: float) -> Tensor:
    """ACER's weights of ∇ log π for continuous actions, ``[T, B, 2]``, constants (Wang et al. 2017, §5.2).

    The action taken has the weight ``min(c, ρ(a_t)) (Q^opc_t − V)``. An action a'_t ~ π stands for the sum over all
    actions in the bias correction and has the weight ``[1 − c/ρ(a'_t)]₊ (Q̃(a'_t) − V)``.

    Args:
        log_rho: ``[T, B, 2]`` log π − log μ of a_t and a'_t.
        advantage: ``[T, B, 2]`` Q^opc_t − V and Q̃(a'_t) − V.
        c: the truncation of importance weights.
    """
    weight = _beyond(log_rho, c)
    weight[..., 0] = log_rho[..., 0].exp().clamp(max=c)
    return (weight * advantage).detach()


def _beyond(log_rho: Tensor, c: float) -> Tensor:
    """[1 − c/ρ]₊, the share of an importance weight that its truncation at c cuts off."""
    return (1 - c * (-log_rho).clamp(max=80.0).exp()).clamp(min=0)


def trust_region(g: Tensor, k: Tensor, delta: float) -> Tensor:
    """``z = g − max(0, (kᵀg − δ)/‖k‖²) k``, ``[..., S]``, ACER's trust region (Wang et al. 2017, eq. 12).

    z is the vector nearest to g with kᵀz ≤ δ. Every row is projected by itself, so g must not have been averaged over
    rows. Where k is 0, z is g.

    Args:
        g: ``[..., S]`` gradient of the objective by the statistics φ of the policy.
        k: ``[..., S]`` ∇_φ KL(π_average ‖ π).
        delta: δ, the bound on kᵀz.
    """
    excess = ((k * g).sum(-1, keepdim=True) - delta).clamp(min=0)
    return g - excess / k.square().sum(-1, keepdim=True).clamp(min=SMALLEST) * k


def squared_error(value: Tensor, target: Tensor) -> Tensor:
    """``(R_t − V(x_t))²`` per row, without a ½; the target R_t is held constant."""
    return (target.detach() - value) ** 2


def huber_error(value: Tensor, target: Tensor) -> Tensor:
    """``(R_t − V(x_t))²`` up to an error of 1 and ``2|R_t − V(x_t)| − 1`` beyond, per row; R_t is held constant.

    This is twice Huber's loss, so that small errors weigh as much as in `squared_error`.
    """
    error = (target.detach() - value).abs()
    near = error.clamp(max=1)
    return near * (2 * error - near)


def normalized(advantage: Tensor, mask: Tensor) -> Tensor:
    """``(A − mean) / std`` over real rows, ``[T, B]``, with the population std; A itself if fewer than two are real."""
    count = mask.sum()
    n = count.clamp(min=1.0)
    centred = (advantage - (advantage * mask).sum() / n) * mask
    deviation = (centred.square().sum() / n).sqrt() + 1e-8
    return advantage.where(count < 2, centred / deviation)


def clipped_surrogate(rho: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """``−min(ρ A, clip(ρ, 1−ε, 1+ε) A)`` per row (Schulman et al. 2017, eq. 7); A is held constant.

    The gradient is 0 exactly where A > 0 and ρ > 1+ε, or A < 0 and ρ < 1−ε.
    """
    a = advantage.detach()
    return -(rho * a).minimum(rho.clamp(1 - clip, 1 + clip) * a)


def clipped_error(value: Tensor, target: Tensor, old_value: Tensor, clip: float | None) -> Tensor:
    """``max((R − V)², (R − V_old − clip(V − V_old, ±ε))²)`` per row, or ``(R − V)²`` if ε, `clip`, is None."""
    error = squared_error(value, target)
    if clip is None:
        return error
    near = old_value + (value - old_value).clamp(-clip, clip)
    return error.maximum(squared_error(near, target))
