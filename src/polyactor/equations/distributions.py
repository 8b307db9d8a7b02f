"""Policies π(·|x) of a batch of observations, with their samples, log-probabilities, entropies and divergences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


ILLEGAL = -1e9
"""The logit of an illegal choice. Its probability is exactly 0, and no logarithm, entropy or divergence is infinite."""
MOST_UNIFORM = 1 - 2**-20
"""The largest uniform number that a choice is made by, below 1 in float32 also when it is multiplied."""
SMALLEST = 1e-30
"""Probabilities are clamped to at least this before their logarithm is taken."""


@dataclass(frozen=True)
class Categorical:
    """A categorical policy, π(a|x) ∝ exp(logits_a); logits ``[..., n]``, actions ``[...]`` int64."""

    logits: Tensor

    @property
    def log_p(self) -> Tensor:
        """log π(·|x), ``[..., n]``, by log_softmax, which stays finite where the logarithm of a softmax does not."""
        return self.logits.log_softmax(-1)

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw a ~ π, ``[...]``: with ε_a ~ Exp(1), a has the largest π(a|x)/ε_a of all with probability π(a|x)."""
        p = self.logits.softmax(-1)
        return (p / p.new_empty(p.shape).exponential_(generator=generator)).argmax(-1)

    def mode(self) -> Tensor:
        """argmax_a π(a|x), ``[...]``."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log π(a|x), ``[...]``."""
        return self.log_p.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """H(π) = −Σ_a π(a|x) log π(a|x), ``[...]``."""
        log_p = self.log_p
        return -(log_p.exp() * log_p).sum(-1)

    def kl_from(self, other: Self) -> Tensor:
        """KL(other ‖ self), ``[...]``."""
        return _kl(other.log_p, self.log_p)

    def index(self, action: Tensor) -> Tensor:
        """The places of actions ``[...]`` in the list of all, which are the actions themselves."""
        return action


@dataclass(frozen=True)
class Probabilities:
    """A categorical policy given by its probabilities π(a|x), ``[..., n]``.

    The probabilities are not normalised again, so that gradients by `p` are partial derivatives by each π(a|x).
    """

    p: Tensor

    @property
    def log_p(self) -> Tensor:
        """log π(·|x), ``[..., n]``; finite, and with gradient 0, where π(a|x) is 0."""
        return self.p.clamp(min=SMALLEST).log()

    def entropy(self) -> Tensor:
        """H(π) = −Σ_a π(a|x) log π(a|x), ``[...]``."""
        return -(self.p * self.log_p).sum(-1)

    def kl_from(self, other: Any) -> Tensor:
        """KL(other ‖ self), ``[...]``, where `other` is a `Categorical` or `Probabilities`."""
        return _kl(other.log_p, self.log_p)


@dataclass(frozen=True)
class MultiCategorical:
    """A policy of k independent categorical actions, whose joint probability is their product; actions ``[..., k]``."""

    parts: tuple[Categorical, ...]

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw a_1, …, a_k in this order from one generator, ``[..., k]``."""
        return _stacked([part.sample(generator) for part in self.parts])

    def mode(self) -> Tensor:
        """The most likely action of each part, ``[..., k]``."""
        return _stacked([part.mode() for part in self.parts])

    def log_prob(self, action: Tensor) -> Tensor:
        """Σ_k log π_k(a_k|x), ``[...]``."""
        return _sum([part.log_prob(a) for part, a in zip(self.parts, action.unbind(-1), strict=True)])

    def entropy(self) -> Tensor:
        """Σ_k H(π_k), ``[...]``."""
        return _sum([part.entropy() for part in self.parts])

    def kl_from(self, other: Self) -> Tensor:
        """Σ_k KL(other_k ‖ π_k), ``[...]``."""
        return _sum([part.kl_from(other_part) for part, other_part in zip(self.parts, other.parts, strict=True)])

    @property
    def log_p(self) -> Tensor:
        """log π(·|x) of all Π_k n_k joint actions, ``[..., Π_k n_k]``; the last part varies fastest."""
        joint, *others = [part.log_p for part in self.parts]
        for log_p in others:
            joint = (joint.unsqueeze(-1) + log_p.unsqueeze(-2)).flatten(-2)
        return joint

    def index(self, action: Tensor) -> Tensor:
        """The places ``[...]`` of actions ``[..., k]`` in the list of all joint actions, as in `log_p`."""
        place, *others = action.unbind(-1)
        for part, a in zip(self.parts[1:], others, strict=True):
            place = place * part.logits.shape[-1] + a
        return place


class Numbers(Protocol):
    """A policy of d numbers ``[..., d]``, such as `Gaussian`, whose actions can be made of given noise."""

    @property
    def dims(self) -> int:
        """d, the number of continuous dimensions."""

    @property
    def noise(self) -> int:
        """The standard normal numbers that `from_noise` makes one action of."""

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw a ~ π, ``[..., d]``."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """Return the actions ``[..., d]`` that standard normal noise ``[..., noise]`` makes."""

    def mode(self) -> Tensor:
        """Return the greedy action, ``[..., d]``."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(a|x), ``[...]``."""

    def entropy(self) -> Tensor:
        """Return H(π), ``[...]``."""

    def kl_from(self, other: Any) -> Tensor:
        """Return KL(other ‖ self), ``[...]``."""


@dataclass(frozen=True)
class Gaussian:
    """A policy of d independent normal actions; mean and log σ ``[..., d]``, actions ``[..., d]``, unclipped."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw a = μ + σ ε with ε ~ N(0, I), ``[..., d]``."""
        noise = self.mean.new_empty(self.mean.shape).normal_(generator=generator)
        return self.mean + self.log_std.exp() * noise

    def from_noise(self, noise: Tensor) -> Tensor:
        """The actions ``[..., d]`` that standard normal noise of the same shape makes, a = μ + σ ε."""
        return self.mean + self.log_std.exp() * noise

    @property
    def dims(self) -> int:
        """d, the number of continuous dimensions."""
        return self.mean.shape[-1]

    @property
    def noise(self) -> int:
        """The standard normal numbers that `from_noise` makes one action of, d."""
        return self.dims

    def mode(self) -> Tensor:
        """The mean μ, ``[..., d]``."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """log π(a|x) = Σ_i [−½ ((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π], ``[...]``."""
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """H(π) = Σ_i [log σ_i + ½ log 2πe], ``[...]``."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl_from(self, other: Self) -> Tensor:
        """KL(other ‖ self) = Σ_i [log σ_i − log s_i + (s_i² + (m_i − μ_i)²) / 2σ_i² − ½], ``[...]``.

        m and s are the mean and the standard deviation of `other`.
        """
        ratio = (2 * (other.log_std - self.log_std)).exp()
        distance = (other.mean - self.mean).square() * (-2 * self.log_std).exp()
        return (self.log_std - other.log_std + 0.5 * (ratio + distance - 1)).sum(-1)


@dataclass(frozen=True)
class Mixed:
    """A policy of independent choices and numbers; actions ``[..., k + d]`` have k choices first, as whole numbers."""

    choices: MultiCategorical
    numbers: Numbers

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw choices and then numbers from one generator, ``[..., k + d]``."""
        return self._joined(self.choices.sample(generator), self.numbers.sample(generator))

    def mode(self) -> Tensor:
        """The most likely choices and the greedy numbers, ``[..., k + d]``."""
        return self._joined(self.choices.mode(), self.numbers.mode())

    def log_prob(self, action: Tensor) -> Tensor:
        """log π(a|x) of the choices plus that of the numbers, ``[...]``."""
        choices, numbers = self._split(action)
        return self.choices.log_prob(choices) + self.numbers.log_prob(numbers)

    def entropy(self) -> Tensor:
        """H of the choices plus H of the numbers, ``[...]``."""
        return self.choices.entropy() + self.numbers.entropy()

    def kl_from(self, other: Self) -> Tensor:
        """KL(other ‖ self) of the choices plus that of the numbers, ``[...]``."""
        return self.choices.kl_from(other.choices) + self.numbers.kl_from(other.numbers)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The actions ``[..., k + d]`` that standard normal noise ``[..., noise]`` makes.

        A choice is the first whose cumulative probability is above Φ(ε), which is uniform.
        """
        k = len(self.choices.parts)
        u = (0.5 * (1 + (noise[..., :k] / math.sqrt(2)).erf())).clamp(max=MOST_UNIFORM)
        below = [part.log_p.exp().cumsum(-1) for part in self.choices.parts]
        chosen = [(p <= u_k.unsqueeze(-1) * p[..., -1:]).sum(-1) for p, u_k in zip(below, u.unbind(-1), strict=True)]
        return self._joined(_stacked(chosen), self.numbers.from_noise(noise[..., k:]))

    @property
    def dims(self) -> int:
        """d, the number of continuous dimensions."""
        return self.numbers.dims

    @property
    def noise(self) -> int:
        """The standard normal numbers that `from_noise` makes one action of: one for each choice, then the numbers'."""
        return len(self.choices.parts) + self.numbers.noise

    def _joined(self, choices: Tensor, numbers: Tensor) -> Tensor:
        k, d = choices.shape[-1], numbers.shape[-1]
        joined = numbers.new_empty((*choices.shape[:-1], k + d))
        joined[..., :k], joined[..., k:] = choices, numbers
        return joined

    def _split(self, action: Tensor) -> tuple[Tensor, Tensor]:
        k = action.shape[-1] - self.dims
        return action[..., :k].long(), action[..., k:]


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ_a q(a) (log q(a) − log p(a))."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def _stacked(parts: list[Tensor]) -> Tensor:
    stacked = parts[0].new_empty((*parts[0].shape, len(parts)))
    for k, part in enumerate(parts):
        stacked[..., k] = part
    return stacked


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
