"""Advantage actor-critic: the loss that A2C and A3C share."""

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

    ⟨·⟩ is the mean or the sum over real rows. Under `sync` this is A2C, under `hogwild` A3C.
    """

    gae_lambda: Annotated[float, Allowed(0, 1)] = 1.0
    """λ of generalised advantage estimation; 1 is the paper's n-step return."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c of the squared error (no ½ inside)."""
    value_loss: Literal["squared", "huber"] = "squared"
    """huber: the squared error up to 1, linear beyond."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""
    entropy_coef_end: Annotated[float | None, Allowed(0, 1)] = None
    """β at the end of the run, reached linearly; none keeps β constant."""
    reduction: losses.Reduction = "mean"
    """Mean or sum over the rollout's real rows."""
    normalize_advantage: bool = False
    """Scale advantages to mean 0 and standard deviation 1 within the rollout."""

    def at(self, progress: float) -> Self:
        """Itself with β annealed to this progress in [0, 1]."""
        return replace(self, entropy_coef=anneal(self.entropy_coef, self.entropy_coef_end, progress))

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """The equation above over one rollout ``[T, B]``."""
        x = batch.rollout
        mask_t = x.mask
        out = model.unroll(x)
        pi_t = model.distribution(out.policy[:-1])
        v_t = out.value[:-1]
        discount_t = x.discount(self.gamma)

        # Targets: Â_t and R̂_t, constants.
        advantage_t, return_t = returns.gae(x.reward, out.value.detach(), discount_t, mask_t, self.gae_lambda)
        if self.normalize_advantage:
            advantage_t = losses.normalized(advantage_t, mask_t)

        w_t, mean_t = losses.weights(mask_t, self.reduction), losses.weights(mask_t, "mean")
        # Policy: −log π(a_t|x_t) Â_t.
        policy = losses.weighted(losses.policy_gradient(pi_t.log_prob(x.action), advantage_t), w_t)
        # Value: (R̂_t − V(x_t))².
        error = losses.huber_error if self.value_loss == "huber" else losses.squared_error
        value = losses.weighted(error(v_t, return_t), w_t)
        # Entropy: H(π(·|x_t)).
        entropy_t = pi_t.entropy()
        entropy = losses.weighted(entropy_t, w_t)
        total = policy + self.value_coef * value - self.entropy_coef * entropy

        metrics: Mapping[str, Tensor] = {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "entropy": losses.weighted(entropy_t.detach(), mean_t),
        }
        return total, dict(metrics)
