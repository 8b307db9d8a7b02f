"""Actor-critic with experience replay: the loss of ACER, and its replayed batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from polyactor.algorithms.acer import trust_regions
from polyactor.algorithms.acer.critics import Critic, DiscreteCritic, DuelingCritic, Estimate, Policy, Retrace
from polyactor.algorithms.base import Algorithm, Differentiate, Model, Replay
from polyactor.data import Batch, Direction, Metrics, Outputs, Rollout
from polyactor.equations import losses, trust_region
from polyactor.equations.distributions import Probabilities
from polyactor.equations.schedules import anneal
from polyactor.errors import UsageError
from polyactor.fields import Allowed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Region = Literal["params", "probs", "linear", "natural", "average", "none"]

BY_THETA = ("linear", "natural", "average")
"""Trust regions of all parameters together, over the mean of a batch."""


@dataclass(frozen=True)
class ACER(Algorithm):
    """L = ⟨−z_t · φ_t + c_Q ½ (Q^ret_t − Q(x_t, a_t))² − β H⟩  (Wang et al. 2017, eq. 5, 9 and 12; Algorithm 2).

    φ_t are the statistics of π(·|x_t), and z_t is the truncated, bias-corrected policy gradient by them, projected so
    that the policy stays near the average one. The critic is Q(x, ·); V(x) = Σ_a π(a|x) Q(x, a).
    """

    outputs: ClassVar[tuple[str, ...]] = ("policy", "q")
    metrics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", "rho", "kl", "projected")
    corrects_lag: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"behavior_params"})

    truncation: Annotated[float, Allowed(0)] = 10.0
    """c: importance weights above it are truncated, and the bias of that corrected."""
    trace: Annotated[float, Allowed(0)] = 1.0
    """Traces of Retrace are min(this, ρ); whatever c is."""
    trace_lambda: Annotated[float, Allowed(0, 1)] = 1.0
    """λ of the traces."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c_Q of ½ (Q^ret − Q)²."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""
    entropy_coef_end: Annotated[float | None, Allowed(0, 1)] = None
    """β at the end of the run, reached linearly; none keeps β constant."""
    reduction: losses.Reduction = "mean"
    """Mean or sum over the real rows of a batch."""
    trust_region: Region = "params"
    """How the policy is held near the average one. By its statistics, row by row: params (logits, or mean and log σ) or
    probs, the paper's, of discrete actions. By θ, in the mean of a batch: linear. By steps of θ along the natural
    gradient: average, or trust_region, near the policy of the step before. none holds nothing."""
    delta: Annotated[float | None, Allowed(0, above=True)] = None
    """δ, how far a step may lead; none: 1 for the statistics of a row, 0.01 for the mean of a batch."""
    hold_entropy: bool = False
    """The trust region holds back the entropy bonus too (OpenAI Baselines)."""
    average_decay: Annotated[float, Allowed(0, 1)] = 0.99
    """α of the average network."""
    dueling_samples: Annotated[int, Allowed(1)] = 5
    """n, actions that the dueling network is centred by, where they are a Box."""
    on_policy: bool = True
    """Learn from every fresh rollout before those remembered."""
    replay_ratio: Annotated[float, Allowed(0)] = 4.0
    """Replayed batches for each fresh rollout, in the mean (Poisson)."""
    replay_capacity: Annotated[int, Allowed(1)] = 50_000
    """Steps that are remembered, by all workers together."""
    replay_start: Annotated[int, Allowed(0)] = 1_000
    """Steps in a learner's own memory before it replays; where those are more than fit, it replays when it is full."""
    replay_batch: Annotated[int | None, Allowed(1)] = None
    """Rollouts of one environment in a replayed batch; none: as many as a fresh one has."""
    replay_window: Annotated[int | None, Allowed(1)] = None
    """Replay windows of so many steps that begin anywhere; none: whole rollouts as they were."""

    @property
    def remembers(self) -> int:
        """Nothing where nothing is replayed."""
        return self.replay_capacity if self.replay_ratio else 0

    @property
    def averaging(self) -> float | None:
        """α, where something is to be held near the average."""
        return None if self.trust_region in ("none", "natural") else self.average_decay

    @property
    def radius(self) -> float:
        """δ."""
        return self.delta if self.delta is not None else 0.01 if self.trust_region in BY_THETA else 1.0

    @property
    def moves(self) -> bool:
        """Along the natural gradient."""
        return self.trust_region in ("natural", "average")

    @property
    def differentiate(self) -> Differentiate | None:
        """By θ where the trust region is."""
        return self.by_theta if self.trust_region in BY_THETA else None

    def fits(self, columns: int, *, memory: bool, alone: bool) -> None:
        """A window begins where no recurrent state is stored; a natural step is one from the θ it was computed at."""
        if not self.on_policy and not self.replay_ratio:
            raise UsageError(
                "--algorithm.no-on-policy is not allowed with --algorithm.replay-ratio 0: nothing is learned"
            )
        if self.replay_start > self.replay_capacity:
            raise UsageError(
                f"--algorithm.replay-start {self.replay_start} is not allowed: "
                f"it must be at most --algorithm.replay-capacity, {self.replay_capacity}"
            )
        if memory and self.replay_window is not None:
            raise UsageError(
                f"--algorithm.replay-window {self.replay_window} is not allowed with memory: its state is stored where "
                "rollouts begin: use none"
            )
        if self.moves and not alone:
            raise UsageError(
                f"--algorithm.trust-region {self.trust_region} is not allowed where others move θ meanwhile: "
                "use --scheme sync, actor-learner, or hogwild with --workers 1"
            )

    def suits(self, *, continuous: bool) -> None:
        """Probabilities are of discrete actions."""
        if continuous and self.trust_region == "probs":
            raise UsageError("--algorithm.trust-region probs is not allowed with a Box of actions: use params or none")

    def at(self, progress: float) -> Self:
        """Itself with β annealed to this progress in [0, 1]."""
        return replace(self, entropy_coef=anneal(self.entropy_coef, self.entropy_coef_end, progress))

    def batches(
        self, model: Model, rollout: Rollout, replay: Replay | None, generator: torch.Generator
    ) -> Generator[Batch, Metrics, None]:
        """The fresh rollout, then n ~ Poisson(ratio) times some of those remembered."""
        columns = rollout.reward.shape[1]
        if self.on_policy:
            yield self.with_noise(rollout, generator)
        if replay is None or replay.steps < max(1, columns * (self.replay_window or 0)):
            return
        if replay.steps < self.replay_start and not replay.full:
            return
        rate = rollout.reward.new_tensor(self.replay_ratio)
        for _ in range(int(_poisson(rate, generator))):
            replayed = replay.sample(self.replay_batch or columns, generator, self.replay_window)
            yield self.with_noise(replayed, generator)

    def with_noise(self, rollout: Rollout, generator: torch.Generator) -> Batch:
        """The batch of a rollout; where actions are a Box, with the noise of an a' and n u for every row."""
        if not rollout.action.is_floating_point():
            return Batch(rollout)
        shape = (1 + self.dueling_samples, *rollout.action.shape)
        return Batch(rollout, {"noise": rollout.action.new_empty(shape).normal_(generator=generator)})

    def critic(self, out: Outputs) -> Critic:
        """The critic that suits the outputs: Q of listed actions, or a dueling network of a Box."""
        retrace = Retrace(self.gamma, self.truncation, self.trace, self.trace_lambda)
        return DiscreteCritic(retrace) if out.advantage is None else DuelingCritic(retrace)

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """The equation above over fresh or replayed rollouts ``[T, B]``."""
        x, out = batch.rollout, model.unroll(batch.rollout)
        estimate = self.critic(out).estimate(model, batch, out)
        w_t = losses.weights(x.mask, self.reduction)
        pi_t, near = model.distribution(out.policy[:-1]), Metrics()

        def held_t(pi_t: Policy) -> Tensor:  # [T, B], what the trust region holds back
            bonus = self.entropy_coef * pi_t.entropy() if self.hold_entropy else 0.0
            return estimate.policy_loss(pi_t) - bonus

        # Policy: −z_t · φ_t, whose gradient by φ_t is −z_t; without a trust region the policy gradient itself.
        if average is None:
            policy = losses.weighted(held_t(pi_t), w_t)
        else:
            pi_a = trust_regions.average_policy(average, x)
            probs = self.trust_region == "probs"
            phi_t = out.policy[:-1].softmax(-1) if probs else out.policy[:-1]
            policy_of = Probabilities if probs else model.distribution
            z_t, near = trust_regions.by_statistics(phi_t.detach(), policy_of, pi_a, held_t, self.radius)
            policy = losses.weighted(-(z_t * phi_t).sum(-1), w_t)
        # Entropy: −β H, unless the trust region has it.
        if not self.hold_entropy:
            policy = policy - self.entropy_coef * losses.weighted(pi_t.entropy(), w_t)
        # Critic: c_Q ½ (Q^ret − Q)².
        value = losses.weighted(estimate.critic_loss, w_t)
        return policy + self.value_coef * value, self.report(x, pi_t, estimate, near)

    def by_theta(self, model: Model, batch: Batch, average: Model | None, theta: Sequence[Tensor]) -> Direction:
        """A step of the whole policy, held near the average policy or the one of now in the mean over the batch.

        With natural and average the step is taken as it is, and only the critic is left to the optimizer.
        """
        from torch import no_grad

        x, delta = batch.rollout, self.radius
        out = model.unroll(x)
        estimate = self.critic(out).estimate(model, batch, out)
        w_t, mean_t = losses.weights(x.mask, self.reduction), losses.weights(x.mask, "mean")
        pi_t = model.distribution(out.policy[:-1])
        old_t = model.distribution(out.policy[:-1].detach())
        near_t = old_t if average is None else trust_regions.average_policy(average, x)

        def distance(pi_t: Policy) -> Tensor:
            return losses.weighted(pi_t.kl_from(near_t), mean_t)

        def objective(pi_t: Policy) -> Tensor:
            gain_t = self.entropy_coef * pi_t.entropy() - estimate.surrogate(pi_t, old_t)
            return losses.weighted(gain_t, w_t)

        def evaluate() -> tuple[float, float]:
            with no_grad():
                pi_t = model.distribution(model.unroll(x).policy[:-1])
                return objective(pi_t).item(), distance(pi_t).item()

        j, kl = objective(pi_t), distance(pi_t)
        descent = trust_regions.slope(self.value_coef * losses.weighted(estimate.critic_loss, w_t), theta)
        if self.trust_region == "linear":
            step = trust_regions.linear(trust_regions.slope(j, theta), trust_regions.slope(kl, theta), kl, delta)
        else:
            kl_from_old, around = losses.weighted(pi_t.kl_from(old_t), mean_t), average is not None
            step = trust_regions.along_natural_gradient(
                j, kl, kl_from_old, evaluate, theta, delta, around_average=around
            )
        descent = descent if step.ascent is None else descent - step.ascent
        taken = None if step.taken is None else trust_region.parts(step.taken, theta)
        return Direction(trust_region.parts(descent, theta), self.report(x, pi_t, estimate, step.metrics), taken)

    def report(self, x: Rollout, pi_t: Policy, estimate: Estimate, near: Metrics) -> Metrics:
        """The metrics: means over real rows, but for losses, which are reduced as they are."""
        w_t, mean_t = losses.weights(x.mask, self.reduction), losses.weights(x.mask, "mean")
        own = {
            "policy_loss": losses.weighted(estimate.policy_loss(pi_t).detach(), w_t),
            "value_loss": losses.weighted(estimate.critic_loss.detach(), w_t),
            "entropy": losses.weighted(pi_t.entropy().detach(), mean_t),
            "rho": losses.weighted(estimate.rho, mean_t),
        }
        return own | {name: losses.weighted(each, mean_t) if each.dim() else each for name, each in near.items()}


def _poisson(rate: Tensor, generator: torch.Generator) -> Tensor:
    from torch import poisson

    return poisson(rate.cpu(), generator=generator)
