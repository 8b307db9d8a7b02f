"""From an action space to the number of parameters its policy needs, and from those to the distribution.

Parameters always come as one tensor ``[..., P]``: logits for discrete spaces, mean and log σ for a Box.
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
    """What a policy head must know of the action space.

    Attributes:
        sizes: number of choices of each discrete part; empty for a Box.
        dims: number of continuous dimensions; 0 for discrete spaces.
        shape: shape of one action.
        log_std: log σ of every dimension where it is fixed, so that the mean is the only parameter.
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
        """``[..., P]`` to the distribution."""
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
    """The spec of a Discrete, MultiDiscrete or (flat) Box space; `envs` has refused all others before.

    Args:
        space: of one action.
        log_std: log σ where it is fixed.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec(sizes=(int(space.n),), dims=0, shape=())
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(sizes=tuple(int(n) for n in space.nvec), dims=0, shape=(len(space.nvec),))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return ActionSpec(sizes=(), dims=space.shape[0], shape=space.shape, log_std=log_std)
    raise TypeError(f"no policy for {space}")
