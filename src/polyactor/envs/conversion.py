"""Conversion of observations and actions between one environment of Gymnasium and `VectorEnv`, by its spaces alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyactor.envs.serial_vector_env import Unsound, shortened
from polyactor.envs.vector_env import ActionSpace
from polyactor.errors import EnvironmentUnsupported

OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, or Dict and Tuple of these"
"""The supported observation spaces, in words for the sentences of errors."""
ACTIONS = "Discrete, one-dimensional MultiDiscrete and float Box"
"""The supported action spaces, in words for the sentences of errors."""
MOST_NUMBERS = 1 << 24
"""Most numbers in one observation after flattening; more would not fit a rollout."""
MOST_CHOICES = 1 << 20
"""Most choices of a discrete action, or of all of a MultiDiscrete; a policy has an output for each."""


class Conversion:
    """Converts observations and actions of an environment, which itself is not needed.

    Observations of a Box stay as they are if uint8 and are cast to float32 otherwise; those of Discrete, MultiBinary,
    MultiDiscrete, Dict and Tuple are flattened to one vector (`gymnasium.spaces.flatten`).

    Actions of Discrete and MultiDiscrete spaces count from 0, whatever the space's start is. In a Box, actions are
    clipped to [-1, 1] and rescaled to [low, high] in dimensions with two bounds, and clipped at a single bound.

    Args:
        observed: the observation space of the environment.
        acted: the action space of the environment.
        name: the name of the environment in sentences.

    Attributes:
        flat: whether observations are flattened.
        observation_space: that of `VectorEnv`.
        action_space: that of `VectorEnv`.
        decode: converts actions ``[B]`` or ``[B, *A]`` of the policy to those of the environment, in its dtype.
        hidden: the shapes of the parts with two axes or more that flattening makes part of a vector.

    Raises:
        EnvironmentUnsupported: polyactor does not support a space.
    """

    decode: Callable[[NDArray[Any]], NDArray[Any]]

    def __init__(self, observed: spaces.Space[Any], acted: spaces.Space[Any], name: str) -> None:
        self.action_space, self.decode = _actions(acted, name)
        said = f"{name} has the observation space {shortened(observed)}"
        if not _flattenable(observed):
            raise EnvironmentUnsupported(f"{said}; what can be observed is {OBSERVATIONS}.")
        numbers = spaces.flatdim(observed)
        if not 1 <= numbers <= MOST_NUMBERS:
            raise EnvironmentUnsupported(
                f"{said}, which makes {numbers:,} numbers; an observation can have from 1 to {MOST_NUMBERS:,}."
            )
        for part in _leaves(observed):
            if isinstance(part, spaces.Box) and (np.isnan(part.low).any() or np.isnan(part.high).any()):
                raise EnvironmentUnsupported(f"{said}; its bounds must be numbers or infinities, not NaN.")
        self._observed = observed
        self.flat = not (isinstance(observed, spaces.Box) and observed.shape)
        self.hidden = [part.shape for part in _leaves(observed) if self.flat and part.shape and len(part.shape) > 1]
        box = spaces.flatten_space(observed) if self.flat else observed
        assert isinstance(box, spaces.Box)
        self.observation_space = box if box.dtype == np.uint8 else _in_float32(box)

    def encode(self, observation: Any) -> NDArray[Any]:
        """Flatten and cast one observation ``[*O]`` or several ``[B, *O]`` of the environment, to a new array.

        Raises:
            Unsound: a part of it is outside its discrete space, or cannot be cast to its dtype.
        """
        if self.flat:
            _refuse_strange(self._observed, observation)
            observation = spaces.flatten(self._observed, observation)
        with np.errstate(all="ignore"):
            return np.array(observation, self.observation_space.dtype, order="C")


class Flattened(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Flattens observations to a vector, as `gymnasium.wrappers.FlattenObservation` does.

    That takes a category that does not exist for another one, and the digits of a text for a number.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.flatten_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        """Return the observation as a vector.

        Raises:
            Unsound: a part of it is outside its discrete space, or cannot be cast to its dtype.
        """
        space = self.env.observation_space
        _refuse_strange(space, observation)
        return spaces.flatten(space, observation)


def _in_float32(box: spaces.Box) -> spaces.Box:
    with np.errstate(all="ignore"):  # a bound of float64 may be infinite in float32
        return spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32), dtype=np.float32)


def _leaves(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    """Iterate over the parts of a Dict or Tuple, in the order of flattening; any other space is its own part."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _leaves(part)
    else:
        yield space


def _flattenable(space: spaces.Space[Any]) -> bool:
    leaf = spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete
    return all(isinstance(part, leaf) for part in _leaves(space))


def _refuse_strange(space: spaces.Space[Any], value: Any) -> None:
    """Raise `Unsound` for a part of an observation that flattening would take for another one."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _refuse_strange(part, value[key])
    elif isinstance(space, spaces.Tuple):
        for part, each in zip(space.spaces, value, strict=True):
            _refuse_strange(part, each)
    elif isinstance(value, int | np.integer) and isinstance(space, spaces.Discrete):  # the common case, and quick
        if not 0 <= int(value) - int(space.start) < space.n:
            raise Unsound(f"returned the observation {value} where its space has {space}")
    else:
        x = np.asarray(value)
        if isinstance(space, spaces.Box):
            good = np.can_cast(x.dtype, space.dtype, "same_kind")
        elif isinstance(space, spaces.MultiBinary):
            good = x.dtype.kind in "biuf" and bool(((x == 0) | (x == 1)).all())
        else:
            assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
            count = _counts(space)
            good = x.dtype.kind in "biu" and x.size == count.size
            if good:
                index = np.ravel(x).astype(np.int64) - np.ravel(space.start)
                good = bool(((index >= 0) & (index < count)).all())
        if not good:
            raise Unsound(
                f"returned the observation {shortened(value, show=repr)} where its space has {shortened(space)}"
            )


def _counts(space: spaces.Discrete | spaces.MultiDiscrete) -> NDArray[Any]:
    """Return the number of values of each part, ``[P]``."""
    return np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)


def _actions(space: spaces.Space[Any], name: str) -> tuple[ActionSpace, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return the action space of the policy, and the function from its actions to those of the environment.

    Raises:
        EnvironmentUnsupported: policies do not support the environment's action space.
    """
    said = f"{name} has the action space {shortened(space)}"
    if isinstance(space, spaces.Discrete) or (isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1):
        counts = _counts(space)
        choices = sum(counts.tolist())
        if not 1 <= choices <= MOST_CHOICES:
            raise EnvironmentUnsupported(
                f"{said}, which has {choices:,} choices; a policy can have from 1 to {MOST_CHOICES:,}."
            )
        start, dtype = space.start, space.dtype
        ours = spaces.Discrete(choices) if isinstance(space, spaces.Discrete) else spaces.MultiDiscrete(counts)
        return ours, lambda action: (action.astype(np.int64) + start).astype(dtype)
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        low, high, dtype = space.low.astype(np.float64), space.high.astype(np.float64), space.dtype
        if not space.shape[0] or not (low <= high).all():
            raise EnvironmentUnsupported(f"{said}; a Box needs a dimension, and bounds that are in order.")
        with np.errstate(all="ignore"):  # a range that float64 does not hold is none
            bounded = np.isfinite(low) & np.isfinite(high) & np.isfinite(high - low)
        # 0 in dimensions without two bounds, so that the arithmetic below stays finite.
        bottom, width = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)

        def rescale(action: NDArray[Any]) -> NDArray[Any]:
            inside = bottom + (action + 1.0) / 2.0 * width
            with np.errstate(all="ignore"):
                return np.clip(np.where(bounded, inside, action), low, high).astype(dtype)

        limit = np.where(bounded, 1.0, np.inf).astype(np.float32)
        return spaces.Box(-limit, limit, dtype=np.float32), rescale
    raise EnvironmentUnsupported(f"{said}; a policy can act in {ACTIONS}.")
