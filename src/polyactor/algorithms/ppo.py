"""Proximal policy optimisation: several epochs over each rollout, with a clipped ratio (Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from polyactor.algorithms.base import Algorithm, Model, Replay
from polyactor.data import Batch, Metrics, Rollout
from polyactor.equations import losses, returns
from polyactor.equations.schedules import anneal
from polyactor.errors import UsageError
from polyactor.fields import Allowed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class PPO(Algorithm):
    """L = ⟨−min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) + c ½ (R̂ − V)² − β H⟩  (Schulman et al. 2017, eq. 7 and 9).

    ρ_t = π(a_t|x_t) / μ(a_t|x_t), where μ is the behaviour policy; ⟨·⟩ is the mean over the real rows of a minibatch.
    Â and R̂ are computed once per rollout, with the newest parameters when the rollout arrives.
    """

    corrects_lag: ClassVar[bool] = True
    reuses: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction")

    estimator: Literal["gae", "vtrace"] = "gae"
    """Estimator of advantages and returns; vtrace corrects both for a rollout that arrives with an older policy."""
    gae_lambda: Annotated[float, Allowed(0, 1)] = 0.95
    """λ of the estimator, gae or vtrace."""
    clip: Annotated[float, Allowed(0, above=True)] = 0.2
    """ε: a ratio π/μ outside of 1 ± ε gives no further incentive to move away from μ."""
    clip_value: Annotated[float | None, Allowed(0, above=True)] = None
    """Clip the change of V to ± this value (OpenAI Baselines); none does not clip."""
    epochs: Annotated[int, Allowed(1)] = 4
    """Number of passes over each rollout."""
    minibatches: Annotated[int, Allowed(1)] = 4
    """Number of minibatches that each pass is split into: by environments with an LSTM, otherwise by rows."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c of ½ (R̂ − V)²."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""
    entropy_coef_end: Annotated[float | None, Allowed(0, 1)] = None
    """β at the end of the run, reached linearly; none keeps β constant."""
    normalize_advantage: bool = True
    """Scale advantages to mean 0 and standard deviation 1 within the minibatch."""
    target_kl: Annotated[float | None, Allowed(0, above=True)] = None
    """Stop learning from a rollout once the estimated KL from μ to π is above this; none always does all epochs."""

    def fits(self, columns: int, *, memory: bool, alone: bool) -> None:
        """Check that with an LSTM each minibatch has at least one environment.

        Raises:
            UsageError: there are more minibatches than environments.
        """
        if memory and self.minibatches > columns:
            raise UsageError(
                f"--algorithm.minibatches {self.minibatches} is not allowed: with memory a minibatch is "
                f"whole environments, and a batch has {columns}, so it must be at most {columns}"
            )

    def at(self, progress: float) -> Self:
        """Return a copy with β annealed to this progress of the run in [0, 1]."""
        return replace(self, entropy_coef=anneal(self.entropy_coef, self.entropy_coef_end, progress))

    def batches(
        self, model: Model, rollout: Rollout, replay: Replay | None, generator: torch.Generator
    ) -> Generator[Batch, Metrics, None]:
        """Yield the minibatches of all epochs over a rollout, until the KL passes `target_kl`."""
        batch = Batch(rollout, self.targets(model, rollout))
        for _ in range(self.epochs):
            for part in _parts(batch, self.minibatches, generator):
                metrics = yield part
                if self.target_kl is not None and float(metrics["kl"]) > self.target_kl:
                    return

    def targets(self, model: Model, rollout: Rollout) -> dict[str, Tensor]:
        """Compute advantage, return, V and mask of every row, ``[T, B]`` each, with the model's current parameters."""
        x = rollout
        out = model.unroll(x)
        v_t = out.value.detach()
        discount_t = x.discount(self.gamma)
        if self.estimator == "gae":
            advantage_t, return_t = returns.gae(x.reward, v_t, discount_t, x.mask, self.gae_lambda)
        else:
            pi_t = model.distribution(out.policy[:-1])
            rho_t = (pi_t.log_prob(x.action).detach() - x.behavior_log_prob).exp()
            # The advantage has no importance weight, since the clipped surrogate multiplies it by ρ.
            advantage_t, return_t = returns.vtrace(
                x.reward, v_t, discount_t, x.mask, rho_t, trace_lambda=self.gae_lambda, policy_rho_bar=None
            )
        return {"advantage": advantage_t, "return": return_t, "value": v_t[:-1], "mask": x.mask}

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """Compute the loss of the class's equation over a minibatch ``[T, B]``, and its metrics.

        A minibatch has no bootstrap row: its advantages and returns are among the targets of the batch.
        """
        x, mask_t, v_old = batch.rollout, batch.targets["mask"], batch.targets["value"]
        advantage_t, return_t = batch.targets["advantage"], batch.targets["return"]
        out = model.unroll(x)
        pi_t, v_t = model.distribution(out.policy), out.value
        if self.normalize_advantage:
            advantage_t = losses.normalized(advantage_t, mask_t)

        # Ratio: ρ_t = π(a_t|x_t) / μ(a_t|x_t); set to 1 at fake rows, since an overflow there would survive ∞ · 0.
        log_rho_t = (pi_t.log_prob(x.action) - x.behavior_log_prob) * mask_t
        rho_t = log_rho_t.exp()
        w_t = losses.weights(mask_t, "mean")
        # Policy: ⟨−min(ρ Â, clip(ρ, 1−ε, 1+ε) Â)⟩.
        policy = losses.weighted(losses.clipped_surrogate(rho_t, advantage_t, self.clip), w_t)
        # Value: ⟨½ (R̂ − V)²⟩, with the change of V clipped on request.
        value = losses.weighted(0.5 * losses.clipped_error(v_t, return_t, v_old, self.clip_value), w_t)
        # Entropy: ⟨H(π(·|x_t))⟩.
        entropy = losses.weighted(pi_t.entropy(), w_t)
        total = policy + self.value_coef * value - self.entropy_coef * entropy

        rho_t, log_rho_t = rho_t.detach(), log_rho_t.detach()
        outside = ((rho_t - 1).abs() > self.clip).to(mask_t.dtype)
        metrics = {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "entropy": entropy.detach(),
            # ρ − 1 − log ρ estimates KL(μ‖π) without bias and with low variance (Schulman 2020).
            "kl": losses.weighted(rho_t - 1 - log_rho_t, w_t),
            "clip_fraction": losses.weighted(outside, w_t),
        }
        return total, metrics


def _parts(batch: Batch, count: int, generator: torch.Generator) -> Iterator[Batch]:
    """Split a batch at random into `count` minibatches: by environments with a recurrent state, otherwise by rows."""
    x = batch.rollout.acted
    t, b = x.reward.shape
    whole = bool(x.core_state)
    for index in _permutation(b if whole else t * b, x.reward, generator).tensor_split(count):
        if len(index) == 0:
            continue
        if whole:
            yield Batch(x.columns(index), {name: target[:, index] for name, target in batch.targets.items()})
        else:
            chosen = {name: target.flatten()[index].unsqueeze(0) for name, target in batch.targets.items()}
            yield Batch(x.rows(index), chosen)


def _permutation(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return like.new_empty(n).uniform_(generator=generator).argsort()
