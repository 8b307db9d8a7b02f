"""What a model says of a rollout, and what a batch leads to: outputs, directions, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


from polyactor.data.rollout import Moments

Metrics = dict[str, "Tensor"]
"""Scalars of one update by name, such as the policy loss; detached."""


@dataclass(frozen=True)
class Gradients:
    """The gradient of one batch, with everything that an update needs to apply it.

    Attributes:
        vector: ``[θ]`` the gradient, flat in the layout of `polyactor.optim.flat.State`.
        metrics: scalars that the loss reported, by name.
        version: the version of θ that the gradient was computed at.
        steps: environment steps that the update consumes; 0 for a second or later batch of the same rollout.
        moments: new samples of the running statistics, to be merged when the gradient is applied.
        step: ``[θ]`` a change of θ that is added without the optimizer, or None.
        factors: an estimate of the factors of the Fisher matrix, by the names of K-FAC's statistics; mostly empty.
    """

    vector: Tensor
    metrics: Mapping[str, float | Tensor]
    version: int
    steps: int
    moments: Mapping[str, Moments] = field(default_factory=dict)
    step: Tensor | None = None
    factors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for every row of a rollout.

    Attributes:
        policy: ``[T+1, B, P]`` parameters of the action distribution.
        value: ``[T+1, B]`` V(x_t), or ``[T+1, B, A]`` Q(x_t, ·) for an algorithm with a q head and discrete actions.
        advantage: for an algorithm with a q head and a Box of actions, a function from actions ``[..., T, B, d]`` to
            A(x_t, a) ``[..., T, B]`` of the first T rows; otherwise None.
    """

    policy: Tensor
    value: Tensor
    advantage: Callable[[Tensor], Tensor] | None = None

    @property
    def q(self) -> Tensor:
        """``[T+1, B, A]`` Q(x_t, ·) of discrete actions."""
        return self.value


class Direction(NamedTuple):
    """The direction of an update, one tensor per parameter.

    Attributes:
        gradient: the gradient that the optimizer descends.
        metrics: scalars by name.
        step: a change of the parameters that is added without the optimizer, or None.
    """

    gradient: tuple[Tensor, ...]
    metrics: Metrics
    step: tuple[Tensor, ...] | None = None


class Distribution(Protocol):
    """The policy π(·|x) of a batch of observations with leading shape ``[...]``; actions are ``[..., *A]``."""

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw actions a ~ π, ``[..., *A]``; without a generator from torch's default one."""

    def mode(self) -> Tensor:
        """Return the greedy actions: the most likely ones, or the mean of a Beta policy, ``[..., *A]``."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(a|x), ``[...]``."""

    def entropy(self) -> Tensor:
        """Return the entropy H(π(·|x)) in nats, ``[...]``."""

    def kl_from(self, other: Any, /) -> Tensor:
        """Return KL(other ‖ π), ``[...]``, where `other` is a policy of the same class."""
