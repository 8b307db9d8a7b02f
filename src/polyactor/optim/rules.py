"""Update rules: SGD, RMSprop in three conventions, and Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from polyactor.equations.schedules import anneal
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from torch import Tensor

    from polyactor.optim.kfac import Layer

Statistics = dict[str, "Tensor"]
"""The statistics of a rule by name, such as Adam's moments; allocated once, then only changed in place."""


@dataclass(frozen=True)
class Rule:
    """The base of update rules: a learning rate that may be annealed, gradient clipping, and statistics."""

    factored: ClassVar[bool] = False
    """Whether the statistics include factors of the Fisher matrix, which are estimated from rollouts."""

    lr: Annotated[float, Allowed(0)] = 7e-4
    """Learning rate η at the start of the run."""
    lr_end: Annotated[float | None, Allowed(0)] = None
    """η at the end of the run, reached linearly in environment steps of all workers; none keeps η constant."""
    max_grad_norm: Annotated[float | None, Allowed(0, above=True)] = 0.5
    """Clip the gradient to this global norm; none does not clip."""
    shared: bool = True
    """Share one set of statistics between all workers (A3C's shared RMSprop); otherwise each worker has its own."""

    def lr_at(self, progress: float) -> float:
        """Return η at this progress of the run in [0, 1]."""
        return anneal(self.lr, self.lr_end, progress)

    def statistics(self, theta: Tensor, layers: Sequence[Layer] = ()) -> Statistics:
        """Allocate the statistics for a vector of parameters ``[θ]``.

        Args:
            theta: the parameters.
            layers: the layers that they belong to, for rules that are `factored`.
        """
        return {}

    def estimates_at(self, update: int) -> bool:
        """Return whether the factors are estimated at this update, counted from 0."""
        return False

    def observe(self, statistics: Statistics, estimate: Mapping[str, Tensor]) -> None:
        """Average an estimate of the factors, by the names of the statistics, into the statistics in place."""
        raise NotImplementedError

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """Update θ ``[θ]`` and the statistics in place by one gradient.

        Args:
            theta: the parameters ``[θ]``.
            grad: the gradient Δ, ``[θ]``, clipped already.
            statistics: those that `Rule.statistics` allocated.
            lr: the learning rate η.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, θ ← θ − η Δ."""

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """θ ← θ − η Δ, in place."""
        theta.add_(grad, alpha=-lr)


@dataclass(frozen=True)
class RMSprop(Rule):
    """RMSprop in three conventions: g ← αg + (1−α)Δ²,  θ ← θ − η Δ/√(g+ε).

    In the A3C paper and PFRL, ε is inside the root and g starts at 0. In TensorFlow and OpenAI Baselines, ε is inside
    and g starts at 1, which warms up over about 1/(1−α) updates. In PyTorch, θ ← θ − η Δ/(√g + ε) and g starts at 0.
    """

    alpha: Annotated[float, Allowed(0, 1, below=True)] = 0.99
    """Decay α of g, the running mean of squared gradients."""
    eps: Annotated[float, Allowed(0, above=True)] = 1e-5
    """ε, added to g or √g; a loss that is a sum over rows needs another one than a mean."""
    eps_inside: bool = True
    """Add ε to g under the root (A3C, TensorFlow); otherwise to √g (PyTorch)."""
    square_avg_start: Annotated[float, Allowed(0)] = 1.0
    """g before the first update."""

    def statistics(self, theta: Tensor, layers: Sequence[Layer] = ()) -> Statistics:
        """Allocate g, ``[θ]``."""
        return {"square_avg": theta.new_full(theta.shape, self.square_avg_start)}

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """g ← αg + (1−α)Δ²,  θ ← θ − η Δ/√(g+ε) or θ − η Δ/(√g + ε), in place."""
        g = statistics["square_avg"]
        g.mul_(self.alpha).addcmul_(grad, grad, value=1 - self.alpha)
        root = g.add(self.eps).sqrt_() if self.eps_inside else g.sqrt().add_(self.eps)
        theta.addcdiv_(grad, root, value=-lr)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015); its step count is one of the statistics, so that workers share the bias correction."""

    beta1: Annotated[float, Allowed(0, 1, below=True)] = 0.9
    """Decay β₁ of the first moment."""
    beta2: Annotated[float, Allowed(0, 1, below=True)] = 0.999
    """Decay β₂ of the second moment."""
    eps: Annotated[float, Allowed(0, above=True)] = 1e-5
    """ε, added to √v̂ (PyTorch)."""
    eps_hat: bool = False
    """Add ε to √v before the bias of v is corrected (TensorFlow's ε̂)."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (Reddi et al. 2018)."""

    def statistics(self, theta: Tensor, layers: Sequence[Layer] = ()) -> Statistics:
        """Allocate m and v ``[θ]``, the step count, and the largest v so far for AMSGrad."""
        statistics = {
            "step": theta.new_zeros(()).double(),
            "exp_avg": theta.new_zeros(theta.shape),
            "exp_avg_sq": theta.new_zeros(theta.shape),
        }
        return statistics | ({"max_exp_avg_sq": theta.new_zeros(theta.shape)} if self.amsgrad else {})

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """m ← β₁m + (1−β₁)Δ,  v ← β₂v + (1−β₂)Δ²,  θ ← θ − η m̂/(√v̂ + ε), in place by torch's fused kernel."""
        from torch.optim.adam import adam

        t = float(statistics["step"]) + 1
        largest = [statistics["max_exp_avg_sq"]] if self.amsgrad else []
        adam(
            [theta],
            [grad],
            [statistics["exp_avg"]],
            [statistics["exp_avg_sq"]],
            largest,
            [statistics["step"]],
            fused=True,
            amsgrad=self.amsgrad,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=self.eps / math.sqrt(1 - self.beta2**t) if self.eps_hat else self.eps,  # √v + ε̂ = √(1−β₂ᵗ) (√v̂ + ε)
            maximize=False,
        )
