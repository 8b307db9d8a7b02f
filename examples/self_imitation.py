"""An algorithm of one's own in one file. It runs under every scheme, with logs, checkpoints and its flags in --help:

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
    """L = ⟨−log π(a_t|x_t) (Â_t + w (Â_t)₊) + c (R̂_t − V(x_t))² − β H⟩, with Â_t = R̂_t − V(x_t).

    This is A2C that imitates actions with better returns than expected, after Oh et al. 2018 (without their replay).
    """

    imitation: Annotated[float, Allowed(0)] = 0.5
    """Weight w of positive advantages."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c of the squared error of the value."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        x = batch.rollout
        out = model.unroll(x)
        pi_t, v_t = model.distribution(out.policy[:-1]), out.value[:-1]
        # Estimates of the advantage Â_t and of the return R̂_t, both constants.
        advantage_t, return_t = returns.n_step(x.reward, out.value.detach(), x.discount(self.gamma), x.mask)
        w_t = losses.weights(x.mask, "mean")
        # Policy: ⟨−log π(a_t|x_t) (Â_t + w (Â_t)₊)⟩.
        weight_t = advantage_t + self.imitation * advantage_t.clamp(min=0)
        policy = losses.weighted(losses.policy_gradient(pi_t.log_prob(x.action), weight_t), w_t)
        # Value: ⟨(R̂_t − V(x_t))²⟩.
        value = losses.weighted(losses.squared_error(v_t, return_t), w_t)
        # Entropy: ⟨H(π(·|x_t))⟩.
        entropy = losses.weighted(pi_t.entropy(), w_t)
        total = policy + self.value_coef * value - self.entropy_coef * entropy
        return total, {"policy_loss": policy.detach(), "value_loss": value.detach(), "entropy": entropy.detach()}
