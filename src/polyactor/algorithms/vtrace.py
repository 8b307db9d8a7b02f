"""V-trace actor-critic: the loss of IMPALA."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from polyactor.algorithms.base import Algorithm, Model
from polyactor.data import Batch, Metrics
from polyactor.equations import losses, returns
from polyactor.equations.schedules import anneal
from polyactor.errors import UsageError
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VTrace(Algorithm):
    """L = ⟨−log π(a_t|x_t) ρ̂_t (r_t + γ_t v_{t+1} − V(x_t)) + c ½ (v_t − V(x_t))² − β H⟩  (Espeholt et al. 2018, §4.2).

    v_t are the V-trace targets, which correct for the policy μ that acted being older than π.
    """

    corrects_lag: ClassVar[bool] = True

    trace_lambda: Annotated[float, Allowed(0, 1)] = 1.0
    """λ of the traces; 1 is the paper's."""
    rho_bar: Annotated[float, Allowed(0, above=True)] = 1.0
    """ρ̄: truncates the weight of each temporal difference; decides the fixed point."""
    c_bar: Annotated[float, Allowed(0, above=True)] = 1.0
    """c̄: truncates the traces; decides the speed."""
    policy_rho_bar: Annotated[float, Allowed(0, above=True)] = 1.0
    """Truncates the weight of the policy gradient."""
    value_coef: Annotated[float, Allowed(0)] = 0.5
    """Weight c of ½ (v_t − V)²."""
    entropy_coef: Annotated[float, Allowed(0, 1)] = 0.01
    """Weight β of the entropy bonus."""
    entropy_coef_end: Annotated[float | None, Allowed(0, 1)] = None
    """β at the end of the run, reached linearly; none keeps β constant."""
    reduction: losses.Reduction = "mean"
    """Mean, or the paper's sum, over the rollout's real rows."""

    def fits(self, columns: int, *, memory: bool, alone: bool) -> None:
        """ρ̄ ≥ c̄, which the paper's contraction needs."""
        if self.c_bar > self.rho_bar:
            raise UsageError(
                f"--algorithm.c-bar {self.c_bar} is not allowed: it must be at most --algorithm.rho-bar {self.rho_bar}"
            )

    def at(self, progress: float) -> Self:
        """Itself with β annealed to this progress in [0, 1]."""
        return replace(self, entropy_coef=anneal(self.entropy_coef, self.entropy_coef_end, progress))

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """The equation above over one rollout ``[T, B]``."""
        x = batch.rollout
        mask_t = x.mask
        out = model.unroll(x)
        pi_t, v_t = model.distribution(out.policy[:-1]), out.value[:-1]
        discount_t = x.discount(self.gamma)
        log_pi_t = pi_t.log_prob(x.action)
        rho_t = (log_pi_t.detach() - x.behavior_log_prob).exp()

        # Targets: ρ̂_t (r_t + γ_t v_{t+1} − V(x_t)) and v_t, constants.
        advantage_t, target_t = returns.vtrace(
            x.reward,
            out.value.detach(),
            discount_t,
            mask_t,
            rho_t,
            trace_lambda=self.trace_lambda,
            rho_bar=self.rho_bar,
            c_bar=self.c_bar,
            policy_rho_bar=self.policy_rho_bar,
        )
        w_t, mean_t = losses.weights(mask_t, self.reduction), losses.weights(mask_t, "mean")
        # Policy: −log π(a_t|x_t) times its target.
        policy = losses.weighted(losses.policy_gradient(log_pi_t, advantage_t), w_t)
        # Value: ½ (v_t − V(x_t))².
        value = losses.weighted(0.5 * losses.squared_error(v_t, target_t), w_t)
        # Entropy: H(π(·|x_t)).
        entropy_t = pi_t.entropy()
        entropy = losses.weighted(entropy_t, w_t)
        total = policy + self.value_coef * value - self.entropy_coef * entropy
        return total, {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "entropy": losses.weighted(entropy_t.detach(), mean_t),
        }
