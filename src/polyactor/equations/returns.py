"""Returns and advantages as pure functions of tensors ``[T, B]``.

Every recursion carries an advantage, ``A_t = G_t − V(x_t)``. At a fake row (the one after an episode's last step,
``mask_t = 0``) the advantage is 0, so the row before it bootstraps from V of the true final observation. Termination
enters only through ``discount_t = γ (1 − terminated_t)``; truncation needs no case of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Estimate(NamedTuple):
    """The advantage of each action taken, ``[T, B]``, and the target of each V(x_t), ``[T, B]``."""

    advantage: Tensor
    target: Tensor


def gae(reward: Tensor, value: Tensor, discount: Tensor, mask: Tensor, gae_lambda: float) -> Estimate:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    ``δ_t = r_t + γ_t V(x_{t+1}) − V(x_t)``,  ``A_t = δ_t + γ_t λ A_{t+1}``;  the target is ``A_t + V(x_t)``.

    λ = 1 gives the n-step return of A3C (Mnih et al. 2016, Algorithm S3): target
    ``R_t = r_t + γ_t R_{t+1}`` with ``R_T = V(x_T)``.

    Args:
        reward: ``[T, B]`` r_t.
        value: ``[T+1, B]`` V(x_t), detached; the last row is the bootstrap value.
        discount: ``[T, B]`` γ_t = γ (1 − terminated_t).
        mask: ``[T, B]`` 0 at fake rows, where the advantage is 0 and the target V(x_t).
        gae_lambda: λ in [0, 1].

    Raises:
        ValueError: the shapes do not agree.
    """
    _check(reward, value, discount, mask)
    # A finite but meaningless V after a terminal row must not leak: γ_t is 0 there, and 0 · finite = 0.
    delta = reward + discount * value[1:] - value[:-1]
    advantage = _backwards(mask * delta, mask * gae_lambda * discount)
    return Estimate(advantage, advantage + value[:-1])


def n_step(reward: Tensor, value: Tensor, discount: Tensor, mask: Tensor) -> Estimate:
    """n-step returns (Mnih et al. 2016, Algorithm S3), which are `gae` with λ = 1."""
    return gae(reward, value, discount, mask, gae_lambda=1.0)


def vtrace(
    reward: Tensor,
    value: Tensor,
    discount: Tensor,
    mask: Tensor,
    rho: Tensor,
    *,
    trace_lambda: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    policy_rho_bar: float | None = 1.0,
) -> Estimate:
    """V-trace (Espeholt et al. 2018, eq. 1 and §4.2).

    ``δ_t = min(ρ̄, ρ_t) (r_t + γ_t V(x_{t+1}) − V(x_t))``,
    ``v_t − V(x_t) = δ_t + γ_t λ min(c̄, ρ_t) (v_{t+1} − V(x_{t+1}))``,
    the advantage is ``min(ρ̄_π, ρ_t) (r_t + γ_t [λ v_{t+1} + (1 − λ) V(x_{t+1})] − V(x_t))``, the target ``v_t``.

    The fixed point is the value of a policy between π and μ; it is V^π only if ρ̄ = ∞ or μ = π. At an episode's last
    row v_{t+1} is V of the true final observation, never the next episode's target.

    Args:
        reward: ``[T, B]`` r_t.
        value: ``[T+1, B]`` V(x_t), detached.
        discount: ``[T, B]`` γ_t = γ (1 − terminated_t).
        mask: ``[T, B]`` 0 at fake rows.
        rho: ``[T, B]`` ρ_t = π(a_t|x_t) / μ(a_t|x_t), detached.
        trace_lambda: λ, which is 1 in the paper.
        rho_bar: ρ̄, the truncation of the weights of temporal differences; at least `c_bar`.
        c_bar: c̄, the truncation of the traces.
        policy_rho_bar: ρ̄_π, the truncation of the advantage's weight; None leaves the weight out.

    Raises:
        ValueError: the shapes do not agree, or `rho_bar` is below `c_bar`.
    """
    _check(reward, value, discount, mask)
    if rho_bar < c_bar:
        raise ValueError(f"rho_bar {rho_bar} must be at least c_bar {c_bar}")
    v_t, v_tp1 = value[:-1], value[1:]
    delta = rho.clamp(max=rho_bar) * (reward + discount * v_tp1 - v_t)
    excess = _backwards(mask * delta, mask * discount * trace_lambda * rho.clamp(max=c_bar))  # v_t − V(x_t)
    excess_tp1 = excess.roll(-1, 0)
    excess_tp1[-1] = 0.0
    rho_pi = 1.0 if policy_rho_bar is None else rho.clamp(max=policy_rho_bar)
    q_t = reward + discount * (v_tp1 + trace_lambda * excess_tp1)
    return Estimate(mask * rho_pi * (q_t - v_t), excess + v_t)


def retrace(reward: Tensor, value: Tensor, q_taken: Tensor, discount: Tensor, mask: Tensor, trace: Tensor) -> Tensor:
    """``Q^ret_t`` of Retrace, ``[T, B]``, targets of Q(x_t, a_t) (Munos et al. 2016, eq. 4; Wang et al. 2017, eq. 5).

    ``Q^ret_t = r_t + γ_t [V(x_{t+1}) + c_{t+1} (Q^ret_{t+1} − Q(x_{t+1}, a_{t+1}))]``, and where the episode or the
    rollout ends after t, ``Q^ret_t = r_t + γ_t V(x_{t+1})``.

    The traces decide the method: c_t = λ min(1, ρ_t) is Retrace(λ); c_t = min(1, ρ_t^{1/d}) is ACER's Retrace for
    actions of d dimensions; c_t = 1 is ACER's Q^opc; c_t = π(a_t|x_t) is the tree backup.

    Args:
        reward: ``[T, B]`` r_t.
        value: ``[T+1, B]`` V(x_t) = Σ_a π(a|x_t) Q(x_t, a) under the current π, detached.
        q_taken: ``[T, B]`` Q(x_t, a_t), detached.
        discount: ``[T, B]`` γ_t = γ (1 − terminated_t).
        mask: ``[T, B]`` 0 at fake rows, where the target is Q(x_t, a_t).
        trace: ``[T, B]`` c_t.

    Raises:
        ValueError: the shapes do not agree.
    """
    _check(reward, value, discount, mask)
    delta = reward + discount * value[1:] - q_taken
    trace_tp1 = trace.roll(-1, 0)  # the last row, which wraps around, is not used by `_backwards`
    return q_taken + _backwards(mask * delta, mask * discount * trace_tp1)


def _backwards(delta: Tensor, decay: Tensor) -> Tensor:
    """``x_t = δ_t + c_t x_{t+1}`` from x_T = 0, ``[T, B]``, where c is `decay`."""
    x = delta.clone()
    for t in reversed(range(len(delta) - 1)):
        x[t].addcmul_(decay[t], x[t + 1])
    return x


def _check(reward: Tensor, value: Tensor, discount: Tensor, mask: Tensor) -> None:
    t, b = reward.shape
    if value.shape != (t + 1, b) or discount.shape != (t, b) or mask.shape != (t, b):
        shapes = [tuple(x.shape) for x in (reward, value, discount, mask)]
        raise ValueError(f"need reward, discount, mask [T, B] and value [T+1, B]; got {shapes}")
