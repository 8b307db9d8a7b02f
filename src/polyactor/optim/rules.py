"""SGD, RMSprop with its three conventions, Adam: hyper-parameters and one in-place step each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from polyactor.equations.schedules import anneal
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from torch import Tensor

Statistics = dict[str, "Tensor"]
"""What a rule remembers between steps; allocated once by `Rule.statistics`, then only changed in place."""


@dataclass(frozen=True)
class Rule:
    """What every rule has: a learning rate that may anneal, a clip, and whose statistics it keeps."""

    lr: Annotated[float, Allowed(0)] = 7e-4
    """Learning rate η at the start."""
    lr_end: Annotated[float | None, Allowed(0)] = None
    """η at the end of the run, reached linearly in environment steps of all workers; none keeps η constant."""
    max_grad_norm: Annotated[float | None, Allowed(0, above=True)] = 0.5
    """Clip the gradient to this global norm; none does not clip."""
    shared: bool = True
    """One set of statistics for all workers (A3C's shared RMSprop); otherwise one set per worker."""

    def lr_at(self, progress: float) -> float:
        """η at this progress in [0, 1]."""
        return anneal(self.lr, self.lr_end, progress)

    def statistics(self, theta: Tensor) -> Statistics:
        """Freshly allocated statistics for a parameter vector ``[θ]``."""
        return {}

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """Move θ ``[θ]`` and the statistics in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Rule):
    """θ ← θ − η Δ."""

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """One step."""
        theta.add_(grad, alpha=-lr)


@dataclass(frozen=True)
class RMSprop(Rule):
    """g ← αg + (1−α)Δ²,  θ ← θ − η Δ/√(g+ε), in the three conventions found in the field.

    A3C paper and PFRL: ε inside the root, g starts at 0. TensorFlow, OpenAI Baselines: inside, g starts at 1, which
    acts as a warm-up of about 1/(1−α) updates. PyTorch: θ − η Δ/(√g + ε), g starts at 0.
    """

    alpha: Annotated[float, Allowed(0, 1, below=True)] = 0.99
    """Decay α of the running mean of squares."""
    eps: Annotated[float, Allowed(0, above=True)] = 1e-5
    """ε; note that sum and mean losses need different ones."""
    eps_inside: bool = True
    """ε under the root (A3C, TensorFlow) or outside it (PyTorch)."""
    square_avg_start: Annotated[float, Allowed(0)] = 1.0
    """g before the first update."""

    def statistics(self, theta: Tensor) -> Statistics:
        """g, ``[θ]``."""
        return {"square_avg": theta.new_full(theta.shape, self.square_avg_start)}

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """One step."""
        g = statistics["square_avg"]
        g.mul_(self.alpha).addcmul_(grad, grad, value=1 - self.alpha)
        root = g.add(self.eps).sqrt_() if self.eps_inside else g.sqrt().add_(self.eps)
        theta.addcdiv_(grad, root, value=-lr)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015) with its step count among the shared statistics, so that bias correction is right."""

    beta1: Annotated[float, Allowed(0, 1, below=True)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Allowed(0, 1, below=True)] = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Allowed(0, above=True)] = 1e-5
    """ε, added to √v̂ (PyTorch)."""
    eps_hat: bool = False
    """Add ε to √v before its bias is corrected (TensorFlow's ε̂)."""
    amsgrad: bool = False
    """Divide by the largest second moment seen so far (Reddi et al. 2018)."""

    def statistics(self, theta: Tensor) -> Statistics:
        """m and v ``[θ]``, the step count, and max v where AMSGrad wants it."""
        statistics = {
            "step": theta.new_zeros(()).double(),
            "exp_avg": theta.new_zeros(theta.shape),
            "exp_avg_sq": theta.new_zeros(theta.shape),
        }
        return statistics | ({"max_exp_avg_sq": theta.new_zeros(theta.shape)} if self.amsgrad else {})

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """m ← β₁m + (1−β₁)Δ,  v ← β₂v + (1−β₂)Δ²,  θ ← θ − η m̂/(√v̂ + ε), in torch's single pass over all four."""
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


RULES: dict[str, type[Rule]] = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam}
