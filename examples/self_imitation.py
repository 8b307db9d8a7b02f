"""An algorithm of one's own in one file; it then runs under every scheme, logs, checkpoints and shows in --help:

polyactor train examples/self_imitation.py:SelfImitation --scheme hogwild --env CartPole-v1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from polyactor import losses, returns
from polyactor.types import Algorithm, Allowed, Batch, Metrics, Model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SelfImitation(Algorithm):
    """A2C that also imitates what turned out better than expected.

    L = ⟨−log π(a|x) (Â + w (R − V)₊) + c (R − V)² − β H⟩, after Oh et al. 2018 (without their replay).
    """

    imitation: Annotated[float, Allowed(0)] = 0.5
    """Weight w of what turned out better than expected."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c of the value term."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        x = batch.rollout
        out = model.unroll(x)
        pi_t, v_t = model.distribution(out.policy[:-1]), out.value[:-1]
        discount_t = x.discount(self.gamma)
        advantage_t, return_t = returns.n_step(x.reward, out.value.detach(), discount_t, x.mask)
        weight_t = advantage_t + self.imitation * advantage_t.clamp(min=0)
        entropy_t = pi_t.entropy()
        w_t = losses.weights(x.mask, "mean")
        policy = losses.weighted(losses.policy_gradient(pi_t.log_prob(x.action), weight_t), w_t)
        value = losses.weighted(losses.squared_error(v_t, return_t), w_t)
        entropy = losses.weighted(entropy_t, w_t)
        total = policy + self.value_coef * value - self.entropy_coef * entropy
        return total, {"policy_loss": policy.detach(), "value_loss": value.detach(), "entropy": entropy.detach()}
