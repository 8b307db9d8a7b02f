"""The terms losses are made of: ``[T, B]`` in, a scalar out, fake rows masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-30
"""A squared norm below this is 0."""

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


def importance_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """``−π(a_t|x_t)/π_old(a_t|x_t) A_t``, per row; at π = π_old it has the gradient of `policy_gradient`."""
    return -(log_prob - old_log_prob.detach()).exp() * advantage.detach()


def truncated_weights(
    log_p: Tensor, log_rho: Tensor, action: Tensor, q: Tensor, q_ret: Tensor, v: Tensor, c: float
) -> Tensor:
    """What ACER weighs ∇ log π(a|x_t) of every action by, ``[T, B, A]``, constants (Wang et al. 2017, eq. 7 and 9).

    ``min(c, ρ(a_t)) (Q^ret_t − V)`` for the action taken, and for all of them ``π(a) [1 − c/ρ(a)]₊ (Q(a) − V)``. With
    Q^ret = Q the weighted sum's expectation under μ is the gradient of Σ_a π(a) Q(a), whatever c is.

    Args:
        log_p: ``[T, B, A]`` log π(·|x_t).
        log_rho: ``[T, B, A]`` log π(·|x_t) − log μ(·|x_t).
        action: ``[T, B]`` a_t.
        q: ``[T, B, A]`` Q(x_t, ·).
        q_ret: ``[T, B]`` Q^ret_t.
        v: ``[T, B]`` V(x_t) = Σ_a π(a) Q(a).
        c: where importance weights are truncated.
    """
    taken, v = action.unsqueeze(-1), v.unsqueeze(-1)
    truncation = log_rho.gather(-1, taken).exp().clamp(max=c) * (q_ret.unsqueeze(-1) - v)
    correction = log_p.exp() * _beyond(log_rho, c) * (q - v)
    return correction.scatter_add(-1, taken, truncation).detach()


def sampled_weights(log_rho: Tensor, advantage: Tensor, c: float) -> Tensor:
    """`truncated_weights` of actions that cannot be summed over, ``[T, B, 2]`` (Wang et al. 2017, §5.2).

    ``min(c, ρ(a_t)) (Q^opc_t − V)`` for the action taken, ``[1 − c/ρ(a'_t)]₊ (Q̃(a'_t) − V)`` for one a'_t ~ π.

    Args:
        log_rho: ``[T, B, 2]`` log π − log μ of a_t and a'_t.
        advantage: ``[T, B, 2]`` Q^opc_t − V and Q̃(a'_t) − V.
        c: where importance weights are truncated.
    """
    weight = _beyond(log_rho, c)
    weight[..., 0] = log_rho[..., 0].exp().clamp(max=c)
    return (weight * advantage).detach()


def _beyond(log_rho: Tensor, c: float) -> Tensor:
    """[1 − c/ρ]₊, the share of a weight that truncation leaves out."""
    return (1 - c * (-log_rho).clamp(max=80.0).exp()).clamp(min=0)


def trust_region(g: Tensor, k: Tensor, delta: float) -> Tensor:
    """The ``z [..., S]`` nearest to g with kᵀz ≤ δ (Wang et al. 2017, eq. 12): ``z = g − max(0, (kᵀg − δ)/‖k‖²) k``.

    Of each row by itself, so g must not have been averaged before. Where k is 0 nothing is projected.

    Args:
        g: ``[..., S]`` gradient of the objective by the statistics φ of the policy.
        k: ``[..., S]`` ∇_φ KL(π_average ‖ π).
        delta: δ, how much of k a step of g may contain.
    """
    excess = ((k * g).sum(-1, keepdim=True) - delta).clamp(min=0)
    return g - excess / k.square().sum(-1, keepdim=True).clamp(min=SMALLEST) * k


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
