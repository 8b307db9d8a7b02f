"""ACER's critics, which compute targets of Q and weights of the policy gradient from a rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from polyactor.algorithms.base import Model
from polyactor.data import Batch, Distribution, Outputs, Rollout
from polyactor.equations import losses, returns
from polyactor.equations.bounded import Beta
from polyactor.equations.distributions import Categorical, Gaussian, Mixed, MultiCategorical, Probabilities

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Policy = Distribution | Probabilities
WithNumbers = Gaussian | Beta | Mixed
"""Policies of actions that have numbers, which can be drawn by given noise."""

LOG_RHO = 20.0
"""For continuous actions log ρ is clipped to ± this, since ratios of densities in many dimensions overflow."""


class Estimate(NamedTuple):
    """A critic's estimate for K actions in every row: all discrete actions, or the action taken and one sample of π.

    Attributes:
        rho: ``[T, B]`` importance weights ρ(a_t), constants.
        critic_loss: ``[T, B]`` loss of the critic.
        weight: ``[T, B, K]`` truncated, bias-corrected weights of ∇ log π(a|x_t), constants.
        log_prob: a function from a policy to log π(a|x_t), ``[T, B, K]``.
    """

    rho: Tensor
    critic_loss: Tensor
    weight: Tensor
    log_prob: Callable[[Policy], Tensor]

    def policy_loss(self, pi_t: Policy) -> Tensor:
        """``−Σ_a weight_a log π(a|x_t)``, ``[T, B]``, whose gradient is minus the policy gradient."""
        return losses.policy_gradient(self.log_prob(pi_t), self.weight).sum(-1)

    def surrogate(self, pi_t: Policy, old_t: Policy) -> Tensor:
        """``−Σ_a weight_a π(a|x_t)/π_old(a|x_t)``, ``[T, B]``, which has the gradient of `policy_loss` at π = π_old."""
        return losses.importance_surrogate(self.log_prob(pi_t), self.log_prob(old_t), self.weight).sum(-1)


class Critic(Protocol):
    """The interface of ACER's two critics, for discrete actions and for a Box."""

    def estimate(self, model: Model, batch: Batch, out: Outputs) -> Estimate:
        """Compute the estimate of a batch ``[T, B]`` from the model's outputs for its rollout."""


@dataclass(frozen=True)
class Retrace:
    """The settings of Retrace and of the truncation of importance weights, which both critics share.

    Attributes:
        gamma: γ, the discount.
        truncation: c, above which importance weights are truncated.
        trace: the truncation of the traces, which are min(trace, ρ).
        trace_lambda: λ, the decay of the traces.
    """

    gamma: float
    truncation: float
    trace: float
    trace_lambda: float

    def returns(self, x: Rollout, v: Tensor, q_taken_t: Tensor, trace_t: Tensor) -> Tensor:
        """Compute Q^ret_t of Retrace, ``[T, B]`` (Munos et al. 2016, eq. 4).

        Args:
            x: the rollout.
            v: ``[T+1, B]`` V(x_t), detached.
            q_taken_t: ``[T, B]`` Q(x_t, a_t).
            trace_t: ``[T, B]`` traces before they are multiplied by λ.
        """
        discount_t = x.discount(self.gamma)
        return returns.retrace(x.reward, v, q_taken_t.detach(), discount_t, x.mask, self.trace_lambda * trace_t)


@dataclass(frozen=True)
class DiscreteCritic:
    """The critic Q(x, ·) of discrete actions, with V(x) = Σ_a π(a|x) Q(x, a) (Wang et al. 2017, §3).

    Of actions with several parts it lists each joint action.
    """

    retrace: Retrace

    def estimate(self, model: Model, batch: Batch, out: Outputs) -> Estimate:
        """Compute the estimate for all A actions in every row."""
        x = batch.rollout
        assert x.behavior_params is not None
        pi, mu_t = model.distribution(out.policy.detach()), model.distribution(x.behavior_params)
        assert isinstance(pi, Categorical | MultiCategorical)
        assert isinstance(mu_t, Categorical | MultiCategorical)
        a_t = pi.index(x.action)
        taken = a_t.unsqueeze(-1)
        q, q_taken_t = out.q.detach(), out.q[:-1].gather(-1, taken).squeeze(-1)
        v = (pi.log_p.exp() * q).sum(-1)
        log_rho_t = pi.log_p[:-1] - mu_t.log_p
        rho_t = log_rho_t.gather(-1, taken).squeeze(-1).exp()
        # Targets: Q^ret_t by Retrace with traces λ min(trace, ρ_t).
        q_ret_t = self.retrace.returns(x, v, q_taken_t, rho_t.clamp(max=self.retrace.trace))
        # Weights: min(c, ρ_t) (Q^ret_t − V) of the action taken, and π(a) [1 − c/ρ(a)]₊ (Q(a) − V) of every action.
        weight_t = losses.truncated_weights(
            pi.log_p[:-1], log_rho_t, a_t, q[:-1], q_ret_t, v[:-1], self.retrace.truncation
        )
        return Estimate(rho_t, 0.5 * losses.squared_error(q_taken_t, q_ret_t), weight_t, _log_probs)


def with_noise(model: Model, rollout: Rollout, samples: int, generator: torch.Generator) -> Batch:
    """Make a batch of a rollout; where actions have numbers, draw the noise of a'_t and of `samples` actions u_t."""
    if not rollout.action.is_floating_point():
        return Batch(rollout)
    assert rollout.behavior_params is not None
    mu_t = model.distribution(rollout.behavior_params)
    assert isinstance(mu_t, WithNumbers)
    shape = (1 + samples, *rollout.reward.shape, mu_t.noise)
    return Batch(rollout, {"noise": rollout.action.new_empty(shape).normal_(generator=generator)})


@dataclass(frozen=True)
class DuelingCritic:
    """The critic of actions with numbers, a stochastic dueling network (Wang et al. 2017, §5).

    ``Q̃(x, a) = V(x) + A(x, a) − (1/n) Σ_i A(x, u_i)`` with u_i ~ π (eq. 13); the target of V(x_t) is
    ``min(1, ρ_t) (Q^ret_t − Q̃(x_t, a_t)) + V(x_t)``.

    Attributes:
        retrace: the settings of Q^ret.
        opc: the settings of Q^opc, whose λ may be smaller: its noise is that of the policy gradient.
    """

    retrace: Retrace
    opc: Retrace

    def estimate(self, model: Model, batch: Batch, out: Outputs) -> Estimate:
        """Compute the estimate for the action taken and for one a'_t ~ π, sampled with the batch's noise.

        The noise is the target ``noise [1 + n, T, B, N]`` of the batch: that of a'_t, and of n actions u_t.
        """
        from torch import stack

        x, v, advantage = batch.rollout, out.value, out.advantage
        assert x.behavior_params is not None
        assert advantage is not None
        pi_t, mu_t = model.distribution(out.policy[:-1].detach()), model.distribution(x.behavior_params)
        assert isinstance(pi_t, WithNumbers)
        assert isinstance(mu_t, WithNumbers)
        # Q̃(x_t, a_t) and Q̃(x_t, a'_t), with A centred by its mean over n actions u_t of π.
        prime_t, *u_t = pi_t.from_noise(batch.targets["noise"])
        centred = v[:-1] - sum(advantage(u) for u in u_t) / len(u_t)
        q_taken_t, q_prime_t = centred + advantage(x.action), (centred + advantage(prime_t)).detach()

        def log_prob(pi_t: Policy) -> Tensor:
            assert isinstance(pi_t, WithNumbers)
            return stack([pi_t.log_prob(x.action), pi_t.log_prob(prime_t)], -1)

        log_rho_t = (log_prob(pi_t) - log_prob(mu_t)).clamp(-LOG_RHO, LOG_RHO)
        rho_t = log_rho_t[..., 0].exp()
        # Targets: Q^ret_t by Retrace with traces λ min(trace, ρ_t^(1/d)), and Q^opc_t with traces λ of its own.
        root_t = (_rooted(pi_t, x.action) - _rooted(mu_t, x.action)).exp()
        q_ret_t = self.retrace.returns(x, v.detach(), q_taken_t, root_t.clamp(max=self.retrace.trace))
        q_opc_t = self.opc.returns(x, v.detach(), q_taken_t, rho_t.new_ones(rho_t.shape))
        v_t = v[:-1]
        target_t = rho_t.clamp(max=1) * (q_ret_t - q_taken_t) + v_t
        advantages_t = stack([q_opc_t - v_t, q_prime_t - v_t], -1)
        weight_t = losses.sampled_weights(log_rho_t, advantages_t, self.retrace.truncation)
        critic_loss_t = 0.5 * (losses.squared_error(q_taken_t, q_ret_t) + losses.squared_error(v_t, target_t))
        return Estimate(rho_t, critic_loss_t, weight_t, log_prob)


def _rooted(pi: Gaussian | Beta | Mixed, action: Tensor) -> Tensor:
    """Return log π(a|x), ``[T, B]``, with the density of d numbers to the power 1/d, and the probability of choices."""
    if isinstance(pi, Mixed):
        choices, numbers = action.tensor_split((len(pi.choices.parts),), -1)
        return pi.choices.log_prob(choices) + pi.numbers.log_prob(numbers) / pi.dims
    return pi.log_prob(action) / pi.dims


def _log_probs(pi_t: Policy) -> Tensor:
    """Return log π(·|x_t) of all discrete actions, ``[T, B, A]``."""
    assert isinstance(pi_t, Categorical | MultiCategorical | Probabilities)
    return pi_t.log_p
