"""From an action space to the number of parameters its policy needs, and from those to the distribution.

Parameters always come as one tensor ``[..., P]``: logits for discrete spaces, mean and log σ for a Box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from gymnasium import spaces

from polyactor.types import Distribution

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Categorical:
    """π(a|x) ∝ exp(logits_a); logits ``[..., n]``, actions ``[...]`` int64."""

    logits: Tensor

    @property
    def log_p(self) -> Tensor:
        """log π(·|x), ``[..., n]``; always log_softmax, never the log of a softmax."""
        return self.logits.log_softmax(-1)

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """a ~ π, as a race: with ε_a ~ Exp(1), π(a|x)/ε_a is the largest with probability π(a|x)."""
        p = self.logits.softmax(-1)
        return (p / p.new_empty(p.shape).exponential_(generator=generator)).argmax(-1)

    def mode(self) -> Tensor:
        """argmax_a π(a|x)."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log π(a|x)."""
        return self.log_p.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """−Σ_a π(a|x) log π(a|x)."""
        log_p = self.log_p
        return -(log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class MultiCategorical:
    """Independent categoricals: the joint probability is the product. Actions ``[..., k]``."""

    parts: tuple[Categorical, ...]

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Each part in turn, from one generator."""
        return _joined([part.sample(generator) for part in self.parts])

    def mode(self) -> Tensor:
        """Each part's mode."""
        return _joined([part.mode() for part in self.parts])

    def log_prob(self, action: Tensor) -> Tensor:
        """Σ_k log π_k(a_k|x)."""
        return _sum([part.log_prob(a) for part, a in zip(self.parts, action.unbind(-1), strict=True)])

    def entropy(self) -> Tensor:
        """Σ_k H(π_k)."""
        return _sum([part.entropy() for part in self.parts])


@dataclass(frozen=True)
class Gaussian:
    """Independent normals; mean and log σ ``[..., d]``, actions ``[..., d]``, unclipped."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """mean + σ ε."""
        noise = self.mean.new_empty(self.mean.shape).normal_(generator=generator)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Σ_i [−½ ((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π]."""
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Σ_i [log σ_i + ½ log 2πe]."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


@dataclass(frozen=True)
class ActionSpec:
    """What a policy head must know of the action space.

    Attributes:
        sizes: number of choices of each discrete part; empty for a Box.
        dims: number of continuous dimensions; 0 for discrete spaces.
        shape: shape of one action.
    """

    sizes: tuple[int, ...]
    dims: int
    shape: tuple[int, ...]

    @property
    def params(self) -> int:
        """P, the width of the parameter tensor."""
        return sum(self.sizes) or 2 * self.dims

    def distribution(self, params: Tensor) -> Distribution:
        """``[..., P]`` to the distribution."""
        if self.dims:
            mean, log_std = params.tensor_split(2, -1)
            return Gaussian(mean, log_std)
        if not self.shape:
            return Categorical(params)
        ends = tuple(accumulate(self.sizes))[:-1]
        return MultiCategorical(tuple(Categorical(part) for part in params.tensor_split(ends, -1)))


def action_spec(space: spaces.Space[object]) -> ActionSpec:
    """The spec of a Discrete, MultiDiscrete or (flat) Box space; `envs` has refused all others before."""
    if isinstance(space, spaces.Discrete):
        return ActionSpec(sizes=(int(space.n),), dims=0, shape=())
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(sizes=tuple(int(n) for n in space.nvec), dims=0, shape=(len(space.nvec),))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return ActionSpec(sizes=(), dims=space.shape[0], shape=space.shape)
    raise TypeError(f"no policy for {space}")


def _joined(parts: list[Tensor]) -> Tensor:
    joined = parts[0].new_empty((*parts[0].shape, len(parts)))
    for k, part in enumerate(parts):
        joined[..., k] = part
    return joined


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
