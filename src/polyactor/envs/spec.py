"""Spaces and limits of an environment, which a run asks for once and then hands to all its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import gymnasium
import numpy as np

from polyactor.envs.vector_env import ActionSpace, VectorEnv


@dataclass(frozen=True)
class EnvSpec:
    """Spaces and limits of one environment, after the conversions that `VectorEnv` makes.

    Attributes:
        observation_space: a Box with the shape ``[*O]`` of one observation and its dtype, uint8 or float32; a Dict of
            these where an observation has several entries.
        action_space: the space of one action of the policy.
        frames_per_second: the number of steps per second in a video at natural speed.
        stack: the number of frames in one observation, the newest last; 1 where frames are not stacked.
        max_episode_steps: agent steps after which the environment truncates an episode; None if never or unknown.
        hidden: the shapes of the parts with two axes or more that flattening makes part of a vector.
        dropped: the names of the texts that are left out of observations.
        masked: whether the environment gives action masks, which is known once it has been reset.
    """

    observation_space: gymnasium.spaces.Box | gymnasium.spaces.Dict
    action_space: ActionSpace
    frames_per_second: int = 30
    stack: int = 1
    max_episode_steps: int | None = None
    hidden: tuple[tuple[int, ...], ...] = ()
    dropped: tuple[str, ...] = ()
    masked: bool = False

    @classmethod
    def of(cls, envs: VectorEnv, *, stack: int = 1, max_episode_steps: int | None = None) -> Self:
        """Return the spec of environments that have been made, with the stack and limit of their id."""
        found = envs.observation_space, envs.action_space, envs.frames_per_second
        told = tuple(envs.conversion.hidden), envs.conversion.dropped, envs.action_mask is not None
        return cls(*found, stack, max_episode_steps, *told)

    @property
    def entries(self) -> Mapping[str, gymnasium.spaces.Box]:
        """The spaces of the entries of an observation by name; of a single one the name is empty."""
        space = self.observation_space
        return {"": space} if isinstance(space, gymnasium.spaces.Box) else cast("Any", space.spaces)

    @property
    def bytes(self) -> bool:
        """Whether an entry of observations is bytes (uint8)."""
        return any(box.dtype == np.uint8 for box in self.entries.values())

    @property
    def image(self) -> bool:
        """Whether an entry of observations is an image, that is bytes with three axes."""
        return any(box.dtype == np.uint8 and len(box.shape) == 3 for box in self.entries.values())

    @property
    def continuous(self) -> bool:
        """Whether a part of actions is a Box."""
        return isinstance(self.action_space, gymnasium.spaces.Box | gymnasium.spaces.Tuple)
