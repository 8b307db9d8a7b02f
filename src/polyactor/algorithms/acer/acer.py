"""Actor-critic with experience replay: the loss of ACER, and the fresh and replayed batches it learns from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from polyactor.algorithms.acer import critics, trust_regions
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
"""Trust regions that bound the mean divergence of a batch as a function of θ, not that of each row."""


@dataclass(frozen=True)
class ACER(Algorithm):
    """L = ⟨−z_t · φ_t + c_Q ½ (Q^ret_t − Q(x_t, a_t))² − β H⟩  (Wang et al. 2017, eq. 5, 9 and 12; Algorithm 2).

    φ_t are the statistics of π(·|x_t), and z_t is the truncated, bias-corrected policy gradient by φ_t, projected so
    that the policy stays near that of the average network. The critic is Q(x, ·), with V(x) = Σ_a π(a|x) Q(x, a).
    """

    outputs: ClassVar[tuple[str, ...]] = ("policy", "q")
    metrics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", "rho", "kl", "projected")
    corrects_lag: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"behavior_params"})

    truncation: Annotated[float, Allowed(0)] = 10.0
    """c: importance weights above c are truncated, and the bias of the truncation is corrected."""
    trace: Annotated[float, Allowed(0)] = 1.0
    """Truncation of the traces of Retrace, which are min(this, ρ), independently of c."""
    trace_lambda: Annotated[float, Allowed(0, 1)] = 1.0
    """λ, the decay of the traces of Retrace."""
    policy_trace_lambda: Annotated[float | None, Allowed(0, 1)] = None
    """λ of the policy gradient, the decay of the traces of Q^opc; none: as trace_lambda. Where actions have numbers."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c_Q of ½ (Q^ret − Q)²."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""
    entropy_coef_end: Annotated[float | None, Allowed(0, 1)] = None
    """β at the end of the run, reached linearly; none keeps β constant."""
    reduction: losses.Reduction = "mean"
    """Whether the loss is the mean or the sum over the real rows of a batch."""
    trust_region: Region = "params"
    """How the policy is held near that of the average network. params, probs: project the gradient of each row, by the
    parameters of the distribution (logits, or mean and log σ) or, as in the paper, by the probabilities of discrete
    actions. linear: project the gradient of a batch by θ. average: take natural-gradient steps within a trust region
    around the average network; natural: around the policy before the step. none: no trust region."""
    delta: Annotated[float | None, Allowed(0, above=True)] = None
    """δ, the radius of the trust region; none is 1 for params and probs, and 0.01 for linear, average and natural."""
    hold_entropy: bool = False
    """Include the entropy bonus in the gradient that the trust region projects (OpenAI Baselines)."""
    average_decay: Annotated[float, Allowed(0, 1)] = 0.99
    """α of the average network, θ_a ← α θ_a + (1 − α) θ after every update."""
    dueling_samples: Annotated[int, Allowed(1)] = 5
    """n, the number of sampled actions that centre the dueling network; for a Box of actions only."""
    on_policy: bool = True
    """Learn from every fresh rollout too, before the replayed batches."""
    replay_ratio: Annotated[float, Allowed(0)] = 4.0
    """Mean number of replayed batches for each fresh rollout; the number is Poisson distributed."""
    replay_capacity: Annotated[int, Allowed(1)] = 50_000
    """Steps that the replay buffers of all workers hold together."""
    replay_start: Annotated[int, Allowed(0)] = 1_000
    """Steps that a worker's replay buffer must hold before it is sampled; a smaller one is sampled once it is full."""
    replay_batch: Annotated[int | None, Allowed(1)] = None
    """Sequences of one environment each in a replayed batch; none takes as many as a fresh rollout has environments."""
    replay_window: Annotated[int | None, Allowed(1)] = None
    """Steps of the sequences that are replayed, which may begin at any step; none replays whole rollouts."""

    @property
    def remembers(self) -> int:
        """Capacity of the replay buffers of all workers together, in steps; 0 if the replay ratio is 0."""
        return self.replay_capacity if self.replay_ratio else 0

    @property
    def spans_rollouts(self) -> bool:
        """Whether a replayed sequence may begin within a rollout and end in the next one."""
        return self.replay_window is not None

    @property
    def averaging(self) -> float | None:
        """α of the average network, or None for trust regions that do not use one."""
        return None if self.trust_region in ("none", "natural") else self.average_decay

    @property
    def radius(self) -> float:
        """δ, the radius of the trust region, with its default."""
        return self.delta if self.delta is not None else 0.01 if self.trust_region in BY_THETA else 1.0

    @property
    def moves(self) -> bool:
        """Whether the policy takes natural-gradient steps, which are added to θ without the optimizer."""
        return self.trust_region in ("natural", "average")

    @property
    def differentiate(self) -> Differentiate | None:
        """`by_theta` for trust regions over θ; None for the others, whose `loss` is differentiated."""
        return self.by_theta if self.trust_region in BY_THETA else None

    def fits(self, columns: int, *, memory: bool, alone: bool) -> None:
        """Check the replay settings, and that natural-gradient steps run where no other worker changes θ.

        With an LSTM only whole rollouts can be replayed, since the recurrent state is stored at their start. A
        natural-gradient step must be added to the same θ that it was computed at.

        Raises:
            UsageError: a setting is not allowed; the sentence says what is.
        """
        if not self.on_policy and not self.replay_ratio:
            raise UsageError("--algorithm.no-on-policy is not allowed with --algorithm.replay-ratio 0: no batches")
        if self.replay_start > self.replay_capacity:
            raise UsageError(
                f"--algorithm.replay-start {self.replay_start} is not allowed: "
                f"it must be at most --algorithm.replay-capacity, {self.replay_capacity}"
            )
        if memory and self.replay_window is not None:
            raise UsageError(
                f"--algorithm.replay-window {self.replay_window} is not allowed with memory, whose state is "
                "stored where rollouts begin: use none"
            )
        if self.moves and not alone:
            raise UsageError(
                f"--algorithm.trust-region {self.trust_region} is not allowed where others move θ meanwhile: "
                "use --scheme sync, actor-learner, or hogwild with --workers 1"
            )

    def suits(self, *, continuous: bool, parts: int) -> None:
        """Check that the trust region over probabilities is used with a single discrete action only.

        Raises:
            UsageError: the trust region is probs, and actions have numbers or several parts.
        """
        if (continuous or parts > 1) and self.trust_region == "probs":
            what = "a Box of actions" if continuous else "several discrete actions"
            raise UsageError(f"--algorithm.trust-region probs is not allowed with {what}: use params or none")

    def at(self, progress: float) -> Self:
        """Return a copy with β annealed to this progress of the run in [0, 1]."""
        return replace(self, entropy_coef=anneal(self.entropy_coef, self.entropy_coef_end, progress))

    def batches(
        self, model: Model, rollout: Rollout, replay: Replay | None, generator: torch.Generator
    ) -> Generator[Batch, Metrics, None]:
        """Yield the fresh rollout, then n ~ Poisson(replay ratio) batches that are sampled from the replay buffer."""
        columns = rollout.reward.shape[1]
        if self.on_policy:
            yield critics.with_noise(model, rollout, self.dueling_samples, generator)
        if replay is None or replay.steps < max(1, columns * (self.replay_window or 0)):
            return
        if replay.steps < self.replay_start and not replay.full:
            return
        from torch import poisson

        rate = rollout.reward.new_tensor(self.replay_ratio)
        for _ in range(int(poisson(rate, generator=generator))):
            replayed = replay.sample(self.replay_batch or columns, generator, self.replay_window)
            yield critics.with_noise(model, replayed, self.dueling_samples, generator)

    def critic(self, out: Outputs) -> Critic:
        """Return the critic for these outputs: Q of each discrete action, or a dueling network for a Box."""
        retrace = Retrace(self.gamma, self.truncation, self.trace, self.trace_lambda)
        if out.advantage is None:
            return DiscreteCritic(retrace)
        own = self.policy_trace_lambda
        return DuelingCritic(retrace, retrace if own is None else replace(retrace, trace_lambda=own))

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """Compute the loss of the class's equation over a fresh or replayed rollout ``[T, B]``, and its metrics."""
        x, out = batch.rollout, model.unroll(batch.rollout)
        estimate = self.critic(out).estimate(model, batch, out)
        w_t = losses.weights(x.mask, self.reduction)
        pi_t, near = model.distribution(out.policy[:-1]), Metrics()

        def policy_loss_t(pi_t: Policy) -> Tensor:  # [T, B], the terms whose gradient the trust region projects
            bonus = self.entropy_coef * pi_t.entropy() if self.hold_entropy else 0.0
            return estimate.policy_loss(pi_t) - bonus

        # Policy: ⟨−z_t · φ_t⟩, whose gradient by φ_t is −z_t; without a trust region the loss of the policy gradient.
        if average is None:
            policy = losses.weighted(policy_loss_t(pi_t), w_t)
        else:
            pi_a = trust_regions.average_policy(average, x)
            probs = self.trust_region == "probs"
            phi_t = out.policy[:-1].softmax(-1) if probs else out.policy[:-1]
            policy_of = Probabilities if probs else model.distribution
            z_t, near = trust_regions.by_statistics(phi_t.detach(), policy_of, pi_a, policy_loss_t, self.radius)
            policy = losses.weighted(-(z_t * phi_t).sum(-1), w_t)
        # Entropy: ⟨−β H⟩, unless it is part of z_t.
        if not self.hold_entropy:
            policy = policy - self.entropy_coef * losses.weighted(pi_t.entropy(), w_t)
        # Critic: ⟨c_Q ½ (Q^ret_t − Q(x_t, a_t))²⟩.
        value = losses.weighted(estimate.critic_loss, w_t)
        return policy + self.value_coef * value, self.report(x, pi_t, estimate, near)

    def by_theta(self, model: Model, batch: Batch, average: Model | None, theta: Sequence[Tensor]) -> Direction:
        """Compute an update whose trust region bounds the mean divergence of the batch as a function of θ.

        For linear, the optimizer descends the critic's gradient minus the projected ascent direction of the policy. For
        natural and average, it descends the critic's gradient only, and the policy's step is added to θ as it is.
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
        """Return the metrics of a batch as means over real rows; the losses follow `reduction`.

        Args:
            x: the rollout.
            pi_t: the policy at its rows.
            estimate: what the critic computed of it.
            near: metrics of the trust region, per row ``[T, B]`` or scalars.
        """
        w_t, mean_t = losses.weights(x.mask, self.reduction), losses.weights(x.mask, "mean")
        metrics = {
            "policy_loss": losses.weighted(estimate.policy_loss(pi_t).detach(), w_t),
            "value_loss": losses.weighted(estimate.critic_loss.detach(), w_t),
            "entropy": losses.weighted(pi_t.entropy().detach(), mean_t),
            "rho": losses.weighted(estimate.rho, mean_t),
        }
        return metrics | {name: losses.weighted(each, mean_t) if each.dim() else each for name, each in near.items()}
