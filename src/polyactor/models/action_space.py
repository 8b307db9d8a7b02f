"""The parameters that the policy of an action space needs, and the distribution that they describe.

Parameters are one tensor ``[..., P]``: logits for discrete spaces, mean and log σ for a Box.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from gymnasium import spaces

from polyactor.equations.distributions import Categorical, Gaussian, MultiCategorical

if TYPE_CHECKING:
    from torch import Tensor

    from polyactor.data import Distribution


@dataclass(frozen=True)
class ActionSpec:
    """The properties of an action space that a policy head depends on.

    Attributes:
        sizes: the number of choices of each discrete action; empty for a Box.
        dims: the number of continuous dimensions; 0 for discrete spaces.
        shape: the shape of one action.
        log_std: a fixed log σ for every dimension, which leaves the mean as the only parameter; None if σ is learned.
    """

    sizes: tuple[int, ...]
    dims: int
    shape: tuple[int, ...]
    log_std: float | None = None

    @property
    def params(self) -> int:
        """P, the width of the parameter tensor."""
        return sum(self.sizes) or self.dims * (2 if self.log_std is None else 1)

    def distribution(self, params: Tensor) -> Distribution:
        """Return the policy that has the parameters ``[..., P]``."""
        if self.dims and self.log_std is not None:
            return Gaussian(params, params.new_full((self.dims,), self.log_std).expand_as(params))
        if self.dims:
            mean, log_std = params.tensor_split(2, -1)
            return Gaussian(mean, log_std)
        if not self.shape:
            return Categorical(params)
        ends = tuple(accumulate(self.sizes))[:-1]
        return MultiCategorical(tuple(Categorical(part) for part in params.tensor_split(ends, -1)))


def action_spec(space: spaces.Space[object], log_std: float | None = None) -> ActionSpec:
    """Return the spec of an action space.

    Args:
        space: Discrete, MultiDiscrete or a Box with one axis; `polyactor.envs` refuses all others earlier.
        log_std: a fixed log σ for a Box, or None if σ is learned.

    Raises:
        TypeError: there is no policy for the space.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec(sizes=(int(space.n),), dims=0, shape=())
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(sizes=tuple(int(n) for n in space.nvec), dims=0, shape=(len(space.nvec),))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return ActionSpec(sizes=(), dims=space.shape[0], shape=space.shape, log_std=log_std)
    raise TypeError(f"no policy for {space}")
