"""How ACER's policy is held near another one: by its statistics, row by row, or by θ, in the mean of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from polyactor.algorithms.acer.critics import Policy
from polyactor.algorithms.base import Model
from polyactor.data import Metrics, Rollout
from polyactor.equations import losses, trust_region

if TYPE_CHECKING:
    from torch import Tensor


def average_policy(average: Model, x: Rollout) -> Policy:
    """π_average(·|x_t) of the T rows that were acted on, a constant."""
    return average.distribution(average.unroll(x.acted).policy[: len(x.reward)].detach())


def by_statistics(
    phi_t: Tensor,
    policy_of: Callable[[Tensor], Policy],
    pi_a: Policy,
    loss_t: Callable[[Policy], Tensor],
    delta: float,
) -> tuple[Tensor, Metrics]:
    """z_t ``[T, B, P]``: the ascent direction by φ_t, held near the average policy (Wang et al. 2017, eq. 12).

    Args:
        phi_t: ``[T, B, P]`` statistics of π(·|x_t), constants.
        policy_of: from statistics to the policy that has them.
        pi_a: the average policy.
        loss_t: from a policy to ``[T, B]``, what is descended without a trust region.
        delta: δ of a row.
    """
    from torch.autograd import grad

    phi_t = phi_t.requires_grad_()
    pi_t = policy_of(phi_t)
    kl_t = pi_t.kl_from(pi_a)
    (g_t,) = grad(-loss_t(pi_t).sum(), phi_t)
    (k_t,) = grad(kl_t.sum(), phi_t)
    z_t = losses.trust_region(g_t, k_t, delta)
    return z_t, {"kl": kl_t.detach(), "projected": (z_t != g_t).any(-1).to(z_t.dtype)}


class Step(NamedTuple):
    """A step of all parameters, ``[θ]`` flat.

    Attributes:
        ascent: for the optimizer to climb, or None where it is taken without one.
        taken: taken without the optimizer, or None.
        metrics: how far it leads, and whether it was shortened.
    """

    ascent: Tensor | None
    taken: Tensor | None
    metrics: Metrics


def linear(g: Tensor, k: Tensor, kl: Tensor, delta: float) -> Step:
    """``z = g − max(0, (kᵀg − δ)/‖k‖²) k`` for the gradients g of the objective and k of the mean KL, by θ."""
    z = losses.trust_region(g, k, delta)
    return Step(z, None, {"kl": kl.detach(), "projected": (z != g).any().to(kl.dtype)})


def along_natural_gradient(
    objective: Tensor,
    kl: Tensor,
    kl_from_old: Tensor,
    evaluate: Callable[[], tuple[float, float]],
    theta: Sequence[Tensor],
    delta: float,
    *,
    around_average: bool,
) -> Step:
    """The natural step (see `polyactor.equations.trust_region`), searched for along its line.

    Args:
        objective: what is climbed, a scalar differentiable by θ.
        kl: mean KL from the policy that is stayed near, a scalar differentiable by θ.
        kl_from_old: mean KL from the policy of now, a scalar differentiable twice by θ.
        evaluate: objective and divergence at θ as it is then.
        theta: θ.
        delta: δ of the mean.
        around_average: the policy that is stayed near is the average one, and not that of now.
    """
    g, k = slope(objective, theta), slope(kl, theta)
    product = trust_region.fisher(kl_from_old, theta)
    if around_average:
        step = trust_region.step_around(product, g, k, kl.detach(), delta)
    else:
        step = trust_region.natural_step(product, g, delta)
    taken, after = trust_region.line_search(step, theta, evaluate, delta, climbs=bool(g @ step > 0))
    return Step(None, taken, {"kl": kl.new_tensor(after), "projected": (taken != step).any().to(kl.dtype)})


def slope(value: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """``[θ]`` the gradient of a scalar by all parameters; its graph stays."""
    from torch.autograd import grad

    return trust_region.flat(grad(value, theta, retain_graph=True, materialize_grads=True))
