"""Actor-critic with experience replay: the loss of ACER, and its replayed batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self

from polyactor import losses, natural, returns
from polyactor.distributions import Categorical, Gaussian, Probabilities
from polyactor.errors import UsageError
from polyactor.types import (
    Algorithm,
    Allowed,
    Batch,
    Differentiate,
    Direction,
    Distribution,
    Metrics,
    Model,
    Outputs,
    Replay,
    Rollout,
    anneal,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Policy = Distribution | Probabilities

Region = Literal["params", "probs", "linear", "natural", "average", "none"]

BY_THETA = ("linear", "natural", "average")
"""Trust regions of all parameters together, over the mean of a batch."""

LOG_RHO = 20.0
"""Of continuous actions log ρ is clipped to ± this: densities of many dimensions overflow."""


@dataclass(frozen=True)
class ACER(Algorithm):
    """L = ⟨−z_t · φ_t + c_Q ½ (Q^ret_t − Q(x_t, a_t))² − β H⟩  (Wang et al. 2017, eq. 5, 9 and 12; Algorithm 2).

    φ_t are the statistics of π(·|x_t), and z_t is the truncated, bias-corrected policy gradient by them, projected so
    that the policy stays near the average one. The critic is Q(x, ·); V(x) = Σ_a π(a|x) Q(x, a).
    """

    outputs: ClassVar[tuple[str, ...]] = ("policy", "q")
    metrics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", "rho", "kl", "projected")
    corrects_lag: ClassVar[bool] = True
    reads_behavior: ClassVar[bool] = True

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
    gradient: average, or natural, near the policy of the step before. none holds nothing."""
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
            yield self.noisy(rollout, generator)
        if replay is None or replay.steps < max(1, columns * (self.replay_window or 0)):
            return
        if replay.steps < self.replay_start and not replay.full:
            return
        rate = rollout.reward.new_tensor(self.replay_ratio)
        for _ in range(int(_poisson(rate, generator))):
            replayed = replay.sample(self.replay_batch or columns, generator, self.replay_window)
            yield self.noisy(replayed, generator)

    def noisy(self, rollout: Rollout, generator: torch.Generator) -> Batch:
        """With the noise of the actions that the loss draws: one a' and n u for every row, where actions are a Box."""
        if not rollout.action.is_floating_point():
            return Batch(rollout)
        shape = (1 + self.dueling_samples, *rollout.action.shape)
        return Batch(rollout, {"noise": rollout.action.new_empty(shape).normal_(generator=generator)})

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """The equation above over fresh or replayed rollouts ``[T, B]``."""
        x, out = batch.rollout, model.unroll(batch.rollout)
        judgement = self.judge(model, batch, out)
        w_t = losses.weights(x.mask, self.reduction)
        pi_t, near = model.distribution(out.policy[:-1]), Metrics()
        held_t = self.held(judgement)
        if average is None:
            policy = losses.weighted(held_t(pi_t), w_t)
        else:
            pi_a = policy_of(average, x)
            probs = self.trust_region == "probs"
            phi_t = out.policy[:-1].softmax(-1) if probs else out.policy[:-1]
            z_t, near = self.nearby(phi_t.detach(), Probabilities if probs else model.distribution, pi_a, held_t)
            policy = losses.weighted(-(z_t * phi_t).sum(-1), w_t)  # its gradient by φ_t is −z_t
        if not self.hold_entropy:
            policy = policy - self.entropy_coef * losses.weighted(pi_t.entropy(), w_t)
        value = losses.weighted(judgement.value, w_t)
        return policy + self.value_coef * value, self.report(x, pi_t, judgement, near)

    def by_theta(self, model: Model, batch: Batch, average: Model | None, theta: Sequence[Tensor]) -> Direction:
        """A whole policy's step, held near the average policy or the one of now in the mean over the batch.

        linear: ``z = g − max(0, (kᵀg − δ)/‖k‖²) k`` with g and k the gradients by θ of the objective and of the mean
        KL(π_average ‖ π). natural, average: see `polyactor.natural`; the step is searched for along its line, and only
        the critic is left to the optimizer.
        """
        from torch import no_grad
        from torch.autograd import grad

        x, delta = reused(batch.rollout), self.radius
        out = model.unroll(x)
        judgement = self.judge(model, batch, out)
        w_t, mean_t = losses.weights(x.mask, self.reduction), losses.weights(x.mask, "mean")
        pi_t = model.distribution(out.policy[:-1])
        old_t = model.distribution(out.policy[:-1].detach())
        near_t = old_t if average is None else policy_of(average, x)

        def distance(pi_t: Policy) -> Tensor:
            return losses.weighted(pi_t.kl_from(near_t), mean_t)

        def objective(pi_t: Policy) -> Tensor:
            gain_t = self.entropy_coef * pi_t.entropy() - judgement.surrogate(pi_t, old_t)
            return losses.weighted(gain_t, w_t)

        def slope(value: Tensor) -> Tensor:
            return natural.flat(grad(value, theta, retain_graph=True, materialize_grads=True))

        j, kl = objective(pi_t), distance(pi_t)
        g, k, of_value = slope(j), slope(kl), slope(self.value_coef * losses.weighted(judgement.value, w_t))
        if self.trust_region == "linear":
            z = losses.trust_region(g, k, delta)
            near = {"kl": kl.detach(), "projected": (z != g).any().to(kl.dtype)}
            return Direction(natural.parts(of_value - z, theta), self.report(x, pi_t, judgement, near))
        product = natural.fisher(losses.weighted(pi_t.kl_from(old_t), mean_t), theta)
        if average is None:
            step = natural.natural_step(product, g, delta)
        else:
            step = natural.step_around(product, g, k, kl.detach(), delta)

        def evaluate() -> tuple[float, float]:
            with no_grad():
                pi_t = model.distribution(model.unroll(x).policy[:-1])
                return objective(pi_t).item(), distance(pi_t).item()

        taken, after = natural.line_search(step, theta, evaluate, delta, climbs=bool(g @ step > 0))
        near = {"kl": kl.new_tensor(after), "projected": (taken != step).any().to(kl.dtype)}
        own = self.report(x, pi_t, judgement, near)
        return Direction(natural.parts(of_value, theta), own, natural.parts(taken, theta))

    def held(self, judgement: Judgement) -> Callable[[Policy], Tensor]:
        """From a policy to what a trust region by statistics holds, ``[T, B]``."""

        def held_t(pi_t: Policy) -> Tensor:
            bonus = self.entropy_coef * pi_t.entropy() if self.hold_entropy else 0.0
            return judgement.policy(pi_t) - bonus

        return held_t

    def report(self, x: Rollout, pi_t: Policy, judgement: Judgement, near: Metrics) -> Metrics:
        """The metrics: means over real rows, but for losses, which are reduced as they are."""
        w_t, mean_t = losses.weights(x.mask, self.reduction), losses.weights(x.mask, "mean")
        own = {
            "policy_loss": losses.weighted(judgement.policy(pi_t).detach(), w_t),
            "value_loss": losses.weighted(judgement.value.detach(), w_t),
            "entropy": losses.weighted(pi_t.entropy().detach(), mean_t),
            "rho": losses.weighted(judgement.rho, mean_t),
        }
        return own | {name: losses.weighted(each, mean_t) if each.dim() else each for name, each in near.items()}

    def judge(self, model: Model, batch: Batch, out: Outputs) -> Judgement:
        """What a rollout says of its actions."""
        return (self.judge_listed if out.advantage is None else self.judge_box)(model, batch, out)

    def judge_listed(self, model: Model, batch: Batch, out: Outputs) -> Judgement:
        """Of discrete actions, by Q(x, ·) (Wang et al. 2017, §3)."""
        x, taken = batch.rollout, batch.rollout.action.unsqueeze(-1)
        assert x.behavior_params is not None
        pi, mu_t = Categorical(out.policy.detach()), Categorical(x.behavior_params)
        q, q_taken_t = out.q.detach(), out.q[:-1].gather(-1, taken).squeeze(-1)
        v = (pi.log_p.exp() * q).sum(-1)
        log_rho_t = pi.log_p[:-1] - mu_t.log_p
        rho_t = log_rho_t.gather(-1, taken).squeeze(-1).exp()
        q_ret_t = self.retrace(x, v, q_taken_t, rho_t.clamp(max=self.trace))
        weight_t = losses.truncated_weights(
            pi.log_p[:-1], log_rho_t, x.action, q[:-1], q_ret_t, v[:-1], self.truncation
        )

        def log_prob(pi_t: Policy) -> Tensor:
            assert isinstance(pi_t, Categorical | Probabilities)
            return pi_t.log_p

        return Judgement(rho_t, 0.5 * losses.squared_error(q_taken_t, q_ret_t), weight_t, log_prob)

    def judge_box(self, model: Model, batch: Batch, out: Outputs) -> Judgement:
        """Of continuous actions, by a stochastic dueling network (Wang et al. 2017, §5).

        ``Q̃(x, a) = V(x) + A(x, a) − (1/n) Σ_i A(x, u_i)``, u_i ~ π; V's own target is min(1, ρ) (Q^ret − Q̃) + V.
        """
        from torch import stack

        x, v, advantage = batch.rollout, out.value, out.advantage
        assert x.behavior_params is not None
        assert advantage is not None
        pi_t, mu_t = model.distribution(out.policy[:-1].detach()), model.distribution(x.behavior_params)
        assert isinstance(pi_t, Gaussian)
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
        q_ret_t = self.retrace(x, v.detach(), q_taken_t, (log_rho_taken_t / d).exp().clamp(max=self.trace))
        q_opc_t = self.retrace(x, v.detach(), q_taken_t, rho_t.new_ones(rho_t.shape))
        v_t = v[:-1]
        target_t = rho_t.clamp(max=1) * (q_ret_t - q_taken_t) + v_t
        weight_t = losses.sampled_weights(log_rho_t, stack([q_opc_t - v_t, q_prime_t - v_t], -1), self.truncation)
        value_t = 0.5 * (losses.squared_error(q_taken_t, q_ret_t) + losses.squared_error(v_t, target_t))
        return Judgement(rho_t, value_t, weight_t, log_prob)

    def retrace(self, x: Rollout, v: Tensor, q_taken_t: Tensor, trace_t: Tensor) -> Tensor:
        """Q^ret_t, ``[T, B]``."""
        discount_t = x.discount(self.gamma)
        return returns.retrace(x.reward, v, q_taken_t.detach(), discount_t, x.mask, self.trace_lambda * trace_t)

    def nearby(
        self,
        phi_t: Tensor,
        policy_of: Callable[[Tensor], Policy],
        pi_a: Policy,
        loss_t: Callable[[Policy], Tensor],
    ) -> tuple[Tensor, Metrics]:
        """z_t: the ascent direction by φ_t, held near the average policy (Wang et al. 2017, eq. 12), row by row.

        Args:
            phi_t: ``[T, B, P]``, constants.
            policy_of: the policy of such statistics.
            pi_a: the average policy.
            loss_t: ``[T, B]`` of a policy, what is descended without a trust region.
        """
        from torch.autograd import grad

        phi_t = phi_t.requires_grad_()
        pi_t = policy_of(phi_t)
        kl_t = pi_t.kl_from(pi_a)
        (g_t,) = grad(-loss_t(pi_t).sum(), phi_t)
        (k_t,) = grad(kl_t.sum(), phi_t)
        z_t = losses.trust_region(g_t, k_t, self.radius)
        return z_t, {"kl": kl_t.detach(), "projected": (z_t != g_t).any(-1).to(z_t.dtype)}


class Judgement(NamedTuple):
    """What a rollout says of K actions of every row: all there are, or the one taken and one of π's.

    Attributes:
        rho: ``[T, B]`` ρ(a_t).
        value: ``[T, B]`` the critic's loss.
        weight: ``[T, B, K]`` what ∇ log π(a|x_t) is weighed by, constants.
        log_prob: from a policy to its log π(a|x_t), ``[T, B, K]``.
    """

    rho: Tensor
    value: Tensor
    weight: Tensor
    log_prob: Callable[[Policy], Tensor]

    def policy(self, pi_t: Policy) -> Tensor:
        """``[T, B]`` what is descended without a trust region."""
        return losses.policy_gradient(self.log_prob(pi_t), self.weight).sum(-1)

    def surrogate(self, pi_t: Policy, old_t: Policy) -> Tensor:
        """``[T, B]`` the same for steps that lead away from π_old."""
        return losses.importance_surrogate(self.log_prob(pi_t), self.log_prob(old_t), self.weight).sum(-1)


def reused(x: Rollout) -> Rollout:
    """The rollout for other parameters, or for more than one gradient."""
    return x.replace(memo=x.memo and x.memo.images_alone)


def policy_of(average: Model, x: Rollout) -> Policy:
    """π_average(·|x_t) of the T rows that were acted on, a constant."""
    acted = x.replace(observation=x.observation[:-1], is_first=x.is_first[:-1], memo=reused(x).memo)
    return average.distribution(average.unroll(acted).policy[: len(x.reward)].detach())


def _poisson(rate: Tensor, generator: torch.Generator) -> Tensor:
    from torch import poisson

    return poisson(rate.cpu(), generator=generator)
