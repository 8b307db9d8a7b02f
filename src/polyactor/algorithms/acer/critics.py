"""What ACER's critics make of a rollout: targets for Q, and weights for the policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from polyactor.algorithms.base import Model
from polyactor.data import Batch, Distribution, Outputs, Rollout
from polyactor.equations import losses, returns
from polyactor.equations.distributions import Categorical, Gaussian, Probabilities

if TYPE_CHECKING:
    from torch import Tensor

Policy = Distribution | Probabilities

LOG_RHO = 20.0
"""Of continuous actions log ρ is clipped to ± this: densities of many dimensions overflow."""


class Estimate(NamedTuple):
    """What a critic says of K actions in every row: of all there are, or of the one taken and one of π's.

    Attributes:
        rho: ``[T, B]`` ρ(a_t), constants.
        critic_loss: ``[T, B]`` what the critic descends.
        weight: ``[T, B, K]`` the truncated, bias-corrected weight of ∇ log π(a|x_t), constants.
        log_prob: from a policy to its log π(a|x_t), ``[T, B, K]``.
    """

    rho: Tensor
    critic_loss: Tensor
    weight: Tensor
    log_prob: Callable[[Policy], Tensor]

    def policy_loss(self, pi_t: Policy) -> Tensor:
        """``[T, B]`` −Σ_a weight log π(a|x_t), which descends as the policy gradient ascends."""
        return losses.policy_gradient(self.log_prob(pi_t), self.weight).sum(-1)

    def surrogate(self, pi_t: Policy, old_t: Policy) -> Tensor:
        """``[T, B]`` −Σ_a weight π(a|x_t)/π_old(a|x_t), the same for steps that lead away from π_old."""
        return losses.importance_surrogate(self.log_prob(pi_t), self.log_prob(old_t), self.weight).sum(-1)


class Critic(Protocol):
    """One of the two critics, for actions that can be listed or for a Box."""

    def estimate(self, model: Model, batch: Batch, out: Outputs) -> Estimate:
        """The estimate of a batch ``[T, B]``, given what the model says of its rows."""


@dataclass(frozen=True)
class Retrace:
    """What both critics need: Q^ret and the truncation of importance weights.

    Attributes:
        gamma: γ.
        truncation: c, above which importance weights are truncated.
        trace: traces are min(this, ρ).
        trace_lambda: λ of the traces.
    """

    gamma: float
    truncation: float
    trace: float
    trace_lambda: float

    def returns(self, x: Rollout, v: Tensor, q_taken_t: Tensor, trace_t: Tensor) -> Tensor:
        """``[T, B]`` Q^ret_t by traces ``[T, B]`` (Munos et al. 2016)."""
        discount_t = x.discount(self.gamma)
        return returns.retrace(x.reward, v, q_taken_t.detach(), discount_t, x.mask, self.trace_lambda * trace_t)


@dataclass(frozen=True)
class DiscreteCritic:
    """Q(x, ·) of actions that can be listed, with V(x) = Σ_a π(a|x) Q(x, a) (Wang et al. 2017, §3)."""

    retrace: Retrace

    def estimate(self, model: Model, batch: Batch, out: Outputs) -> Estimate:
        """The estimate of all actions."""
        x, taken = batch.rollout, batch.rollout.action.unsqueeze(-1)
        assert x.behavior_params is not None
        pi, mu_t = Categorical(out.policy.detach()), Categorical(x.behavior_params)
        q, q_taken_t = out.q.detach(), out.q[:-1].gather(-1, taken).squeeze(-1)
        v = (pi.log_p.exp() * q).sum(-1)
        log_rho_t = pi.log_p[:-1] - mu_t.log_p
        rho_t = log_rho_t.gather(-1, taken).squeeze(-1).exp()
        # Q^ret corrects off-policy returns by traces min(trace, ρ).
        q_ret_t = self.retrace.returns(x, v, q_taken_t, rho_t.clamp(max=self.retrace.trace))
        # The weight of the action taken is truncated at c; that of every action makes up for what this leaves out.
        weight_t = losses.truncated_weights(
            pi.log_p[:-1], log_rho_t, x.action, q[:-1], q_ret_t, v[:-1], self.retrace.truncation
        )
        return Estimate(rho_t, 0.5 * losses.squared_error(q_taken_t, q_ret_t), weight_t, _log_probs)


@dataclass(frozen=True)
class DuelingCritic:
    """A stochastic dueling network of continuous actions (Wang et al. 2017, §5).

    ``Q̃(x, a) = V(x) + A(x, a) − (1/n) Σ_i A(x, u_i)``, u_i ~ π; V's own target is min(1, ρ) (Q^ret − Q̃) + V.
    """

    retrace: Retrace

    def estimate(self, model: Model, batch: Batch, out: Outputs) -> Estimate:
        """The estimate of the action taken and of one a' ~ π, drawn with the batch's noise ``[1 + n, T, B, d]``."""
        from torch import stack

        x, v, advantage = batch.rollout, out.value, out.advantage
        assert x.behavior_params is not None
        assert advantage is not None
        pi_t, mu_t = model.distribution(out.policy[:-1].detach()), model.distribution(x.behavior_params)
        assert isinstance(pi_t, Gaussian)
        # Q̃ of a_t and of a', centred by n actions of π.
        prime_t, *u_t = pi_t.mean + pi_t.log_std.exp() * batch.targets["noise"]
        centred = v[:-1] - sum(advantage(u) for u in u_t) / len(u_t)
        q_taken_t, q_prime_t = centred + advantage(x.action), (centred + advantage(prime_t)).detach()
        both_t = stack([x.action, prime_t])

        def log_prob(pi_t: Policy) -> Tensor:
            assert isinstance(pi_t, Gaussian)
            return pi_t.log_prob(both_t).movedim(0, -1)

        log_rho_t = (log_prob(pi_t) - log_prob(mu_t)).clamp(-LOG_RHO, LOG_RHO)
        log_rho_taken_t, d = log_rho_t[..., 0], x.action.shape[-1]
        rho_t = log_rho_taken_t.exp()
        # Q^ret has traces min(trace, ρ^(1/d)), Q^opc none: all 1.
        q_ret_t = self.retrace.returns(
            x, v.detach(), q_taken_t, (log_rho_taken_t / d).exp().clamp(max=self.retrace.trace)
        )
        q_opc_t = self.retrace.returns(x, v.detach(), q_taken_t, rho_t.new_ones(rho_t.shape))
        v_t = v[:-1]
        target_t = rho_t.clamp(max=1) * (q_ret_t - q_taken_t) + v_t
        advantages_t = stack([q_opc_t - v_t, q_prime_t - v_t], -1)
        weight_t = losses.sampled_weights(log_rho_t, advantages_t, self.retrace.truncation)
        critic_loss_t = 0.5 * (losses.squared_error(q_taken_t, q_ret_t) + losses.squared_error(v_t, target_t))
        return Estimate(rho_t, critic_loss_t, weight_t, log_prob)


def _log_probs(pi_t: Policy) -> Tensor:
    """``[T, B, A]`` log π(·|x_t) of listed actions."""
    assert isinstance(pi_t, Categorical | Probabilities)
    return pi_t.log_p
