"""Advantage actor-critic, the loss of A2C and A3C (Mnih et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from polyactor.algorithms.base import Algorithm, Model
from polyactor.data import Batch, Metrics
from polyactor.equations import losses, returns
from polyactor.equations.schedules import anneal
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class A2C(Algorithm):
    """L = ⟨−log π(a_t|x_t) Â_t + c (R̂_t − V(x_t))² − β H(π(·|x_t))⟩  (Mnih et al. 2016, §4 and Algorithm S3).

    ⟨·⟩ is the mean or the sum over real rows. The method is A2C under the scheme `sync`, and A3C under `hogwild`.
    """

    gae_lambda: Annotated[float, Allowed(0, 1)] = 1.0
    """λ of generalised advantage estimation; with 1 returns are the n-step returns of the paper."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c of the squared error of the value, which has no factor ½."""
    value_loss: Literal["squared", "huber"] = "squared"
    """Error of the value; huber is the squared error up to an error of 1, and linear beyond."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""
    entropy_coef_end: Annotated[float | None, Allowed(0, 1)] = None
    """β at the end of the run, reached linearly; none keeps β constant."""
    reduction: losses.Reduction = "mean"
    """Whether the loss is the mean or the sum over the real rows of a rollout."""
    normalize_advantage: bool = False
    """Scale advantages to mean 0 and standard deviation 1 within the rollout."""

    def at(self, progress: float) -> Self:
        """Return a copy with β annealed to this progress of the run in [0, 1]."""
        return replace(self, entropy_coef=anneal(self.entropy_coef, self.entropy_coef_end, progress))

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """Compute the loss of the class's equation over one rollout ``[T, B]``, and its metrics."""
        x = batch.rollout
        mask_t = x.mask
        out = model.unroll(x)
        pi_t = model.distribution(out.policy[:-1])
        v_t = out.value[:-1]
        discount_t = x.discount(self.gamma)

        # Estimates of the advantage Â_t and of the return R̂_t, both constants.
        advantage_t, return_t = returns.gae(x.reward, out.value.detach(), discount_t, mask_t, self.gae_lambda)
        if self.normalize_advantage:
            advantage_t = losses.normalized(advantage_t, mask_t)

        w_t, mean_t = losses.weights(mask_t, self.reduction), losses.weights(mask_t, "mean")
        # Policy: ⟨−log π(a_t|x_t) Â_t⟩.
        policy = losses.weighted(losses.policy_gradient(pi_t.log_prob(x.action), advantage_t), w_t)
        # Value: ⟨(R̂_t − V(x_t))²⟩.
        error = losses.huber_error if self.value_loss == "huber" else losses.squared_error
        value = losses.weighted(error(v_t, return_t), w_t)
        # Entropy: ⟨H(π(·|x_t))⟩.
        entropy_t = pi_t.entropy()
        entropy = losses.weighted(entropy_t, w_t)
        total = policy + self.value_coef * value - self.entropy_coef * entropy

        metrics: Mapping[str, Tensor] = {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "entropy": losses.weighted(entropy_t.detach(), mean_t),
        }
        return total, dict(metrics)
