"""An algorithm of one's own in few lines: actor-critic with truncated importance weights, under every scheme.

polyactor train examples/own_algorithm.py:Truncated --env CartPole-v1 --scheme actor-learner
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from polyactor import losses, returns
from polyactor.types import Algorithm, Allowed, Batch, Metrics, Model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Truncated(Algorithm):
    """L = ⟨−min(c, ρ_t) Â_t log π(a_t|x_t) + ½ (R̂_t − V(x_t))² − β H⟩, with ρ_t = π(a_t|x_t) / μ(a_t|x_t)."""

    most: Annotated[float, Allowed(1)] = 1.0
    """Most weight c of one action; a field is a flag: --algorithm.most 2."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        x = batch.rollout  # [T, B] steps
        out = model.unroll(x)  # one step more: V is needed where the rollout ends
        pi_t, w_t = model.distribution(out.policy[:-1]), losses.weights(x.mask, "mean")
        log_pi_t = pi_t.log_prob(x.action)
        rho_t = (log_pi_t.detach() - x.behavior_log_prob).exp().clamp(max=self.most)
        advantage_t, return_t = returns.n_step(x.reward, out.value.detach(), x.discount(self.gamma), x.mask)
        policy = losses.weighted(-rho_t * advantage_t * log_pi_t, w_t)
        value = losses.weighted(0.5 * losses.squared_error(out.value[:-1], return_t), w_t)
        entropy = losses.weighted(pi_t.entropy(), w_t)
        total = policy + value - self.entropy_coef * entropy
        return total, {"policy_loss": policy.detach(), "value_loss": value.detach(), "entropy": entropy.detach()}
