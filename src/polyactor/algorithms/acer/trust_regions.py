"""ACER's trust regions: over the statistics of the policy in each row, or over θ in the mean of a batch."""

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
    """Return the policy of the average network, π_average(·|x_t), at the T rows with an action, as a constant."""
    return average.distribution(average.unroll(x.acted).policy[: len(x.reward)].detach())


def by_statistics(
    phi_t: Tensor,
    policy_of: Callable[[Tensor], Policy],
    pi_a: Policy,
    loss_t: Callable[[Policy], Tensor],
    delta: float,
) -> tuple[Tensor, Metrics]:
    """Compute ``z_t [T, B, P]``, the policy gradient by φ_t projected on the trust region (Wang et al. 2017, eq. 12).

    Returns z_t, and metrics ``[T, B]``: the divergence ``kl``, and ``projected``, 1 where the projection changed z_t.

    Args:
        phi_t: ``[T, B, P]`` statistics of π(·|x_t), constants.
        policy_of: a function from statistics to the policy that has them.
        pi_a: the policy of the average network.
        loss_t: a function from a policy to the loss of each row without a trust region, ``[T, B]``.
        delta: δ, the radius of the trust region of a row.
    """
    from torch.autograd import grad

    phi_t = phi_t.requires_grad_()
    pi_t = policy_of(phi_t)
    kl_t = pi_t.kl_from(pi_a)
    (g_t,) = grad(-loss_t(pi_t).sum(), phi_t, retain_graph=True)  # compiled, both are one graph
    (k_t,) = grad(kl_t.sum(), phi_t)
    z_t = losses.trust_region(g_t, k_t, delta)
    return z_t, {"kl": kl_t.detach(), "projected": (z_t != g_t).any(-1).to(z_t.dtype)}


class Step(NamedTuple):
    """A step of the policy within a trust region over θ; it is either an `ascent` or `taken`.

    Attributes:
        ascent: ``[θ]`` a direction that the optimizer ascends, or None.
        taken: ``[θ]`` a change that is added to θ without the optimizer, or None.
        metrics: the divergence ``kl``, and ``projected``, 1 if the trust region changed the step.
    """

    ascent: Tensor | None
    taken: Tensor | None
    metrics: Metrics


def linear(g: Tensor, k: Tensor, kl: Tensor, delta: float) -> Step:
    """Project the policy gradient g on a linear trust region over θ, ``z = g − max(0, (kᵀg − δ)/‖k‖²) k``.

    Args:
        g: ``[θ]`` gradient of the objective.
        k: ``[θ]`` gradient of the mean divergence.
        kl: the mean divergence, for the metrics.
        delta: δ, the bound on kᵀz.
    """
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
    """Compute a natural-gradient step within a trust region over θ, shortened by a line search.

    Args:
        objective: the scalar to be increased, differentiable by θ.
        kl: mean KL from the policy at the centre of the trust region, a scalar differentiable by θ.
        kl_from_old: mean KL from the policy before the step, a scalar twice differentiable by θ.
        evaluate: computes objective and divergence from the values that θ has when it is called.
        theta: the parameters θ.
        delta: δ, the radius of the trust region.
        around_average: whether the centre is the average network's policy; otherwise it is the policy before the step.
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
    """Compute the gradient of a scalar by all parameters, flat ``[θ]``; the graph is kept for further gradients."""
    from torch.autograd import grad

    return trust_region.flat(grad(value, theta, retain_graph=True, materialize_grads=True))
