"""The parameters that the policy of an action space needs, and the distribution that they describe.

Parameters are one tensor ``[..., P]``: logits of all discrete parts, then mean and log σ of all numbers, or for a Beta
policy α and β before their softplus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from gymnasium import spaces

from polyactor.equations.bounded import Beta, SquashedGaussian
from polyactor.equations.distributions import ILLEGAL, Categorical, Gaussian, Mixed, MultiCategorical, Numbers
from polyactor.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from polyactor.data import Distribution

Kind = Literal["gaussian", "beta", "squashed"]
"""The distribution of the numbers in actions."""


@dataclass(frozen=True)
class ActionSpec:
    """The properties of an action space that a policy head depends on.

    Attributes:
        sizes: the number of choices of each discrete part; empty for a Box.
        dims: the number of continuous dimensions; 0 for discrete spaces.
        shape: the shape of one action.
        log_std: a fixed log σ for every dimension, which leaves the mean as the only parameter; None if σ is learned.
        kind: the distribution of numbers.
        most: the largest size of each number that reaches an environment: 1, or infinity without two bounds.
    """

    sizes: tuple[int, ...]
    dims: int
    shape: tuple[int, ...]
    log_std: float | None = None
    kind: Kind = "gaussian"
    most: tuple[float, ...] = ()

    @property
    def choices(self) -> int:
        """C, the number of choices of all discrete parts together."""
        return sum(self.sizes)

    @property
    def params(self) -> int:
        """P, the width of the parameter tensor."""
        return self.choices + self.dims * (2 if self.log_std is None else 1)

    @property
    def encoding(self) -> int:
        """The number of inputs that one action is to a network: its choices one-hot, and then its numbers."""
        return self.choices + self.dims

    def distribution(self, params: Tensor) -> Distribution:
        """Return the policy that has the parameters ``[..., P]``."""
        if not self.shape:
            return Categorical(params)
        if not self.dims:
            return self._choices(params)
        if not self.sizes:
            return self._numbers(params)
        return Mixed(self._choices(params[..., : self.choices]), self._numbers(params[..., self.choices :]))

    def sent(self, action: Tensor) -> Tensor:
        """Return actions ``[..., *A]`` as environments are sent them: numbers that were drawn before tanh after it."""
        if self.kind != "squashed" or not self.dims:
            return action
        choices, numbers = action.tensor_split((len(self.sizes),), -1)
        return torch.cat([choices, numbers.tanh()], -1)

    def masked(self, params: Tensor, mask: Tensor | None) -> Tensor:
        """Return parameters ``[..., P]`` with the logits of illegal choices so low that their probability is 0.

        Args:
            params: ``[..., P]``.
            mask: ``[..., C]`` bool, the legal choices; None allows all.
        """
        if mask is None:
            return params
        if not self.dims:
            return params.masked_fill(~mask, ILLEGAL)
        logits, numbers = params.tensor_split((self.choices,), -1)
        return torch.cat([logits.masked_fill(~mask, ILLEGAL), numbers], -1)

    def encoded(self, action: Tensor) -> Tensor:
        """Return actions ``[..., *A]`` with numbers as inputs of a network: choices one-hot, ``[..., encoding]``.

        Numbers are clipped to their bounds, as environments clip them: what lies beyond has the same effect.
        """
        choices, numbers = self.sent(action).tensor_split((len(self.sizes),), -1)
        most = numbers.new_tensor(self.most)
        index = choices.long()
        one_hot = [torch.nn.functional.one_hot(index[..., k], n) for k, n in enumerate(self.sizes)]
        return torch.cat([*(each.to(action.dtype) for each in one_hot), numbers.clamp(-most, most)], -1)

    def _choices(self, logits: Tensor) -> MultiCategorical:
        ends = tuple(accumulate(self.sizes))[:-1]
        return MultiCategorical(tuple(Categorical(part) for part in logits.tensor_split(ends, -1)))

    def _numbers(self, params: Tensor) -> Numbers:
        if self.kind == "beta":
            return Beta(*params.tensor_split(2, -1))
        policy = SquashedGaussian if self.kind == "squashed" else Gaussian
        if self.log_std is not None:
            return policy(params, params.new_full((self.dims,), self.log_std).expand_as(params))
        mean, log_std = params.tensor_split(2, -1)
        return policy(mean, log_std)


def action_spec(space: spaces.Space[object], log_std: float | None = None, kind: Kind = "gaussian") -> ActionSpec:
    """Return the spec of an action space.

    Args:
        space: Discrete, MultiDiscrete or a Box with one axis, or a Tuple of the last two; `polyactor.envs` makes all
            others one of these.
        log_std: a fixed log σ for a Box, or None if σ is learned; a Beta policy has none.
        kind: the distribution of numbers.

    Raises:
        TypeError: there is no policy for the space.
        UsageError: the distribution needs two bounds in every dimension, and one has not.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec(sizes=(int(space.n),), dims=0, shape=())
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(sizes=tuple(int(n) for n in space.nvec), dims=0, shape=(len(space.nvec),))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        if kind != "gaussian":
            _refuse_unbounded(space, kind)
        most = tuple(space.high.tolist())
        return ActionSpec((), space.shape[0], space.shape, None if kind == "beta" else log_std, kind, most)
    if isinstance(space, spaces.Tuple):
        choices, numbers = (action_spec(part, log_std, kind) for part in space.spaces)
        return replace(numbers, sizes=choices.sizes, shape=(len(choices.sizes) + numbers.dims,))
    raise TypeError(f"no policy for {space}")


def _refuse_unbounded(box: spaces.Box, kind: Kind) -> None:
    """Raise `UsageError` if a dimension of a Box has no two finite bounds."""
    unbounded = np.flatnonzero(~(np.isfinite(box.low) & np.isfinite(box.high)))
    if len(unbounded):
        raise UsageError(
            f"--model.distribution {kind} is not allowed with actions that have a number without two finite bounds, as "
            f"number {unbounded[0] + 1} of {box.shape[0]} here: use gaussian"
        )
