"""Spaces and limits of an environment, which a run asks for once and then hands to all its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import gymnasium
import numpy as np

from polyactor.envs.vector_env import ActionSpace, VectorEnv


@dataclass(frozen=True)
class EnvSpec:
    """Spaces and limits of one environment, after the conversions that `VectorEnv` makes.

    Attributes:
        observation_space: a Box with the shape ``[*O]`` of one observation and its dtype, uint8 or float32.
        action_space: the space of one action of the policy.
        frames_per_second: the number of steps per second in a video at natural speed.
        stack: the number of frames in one observation, the newest last; 1 where frames are not stacked.
        max_episode_steps: agent steps after which the environment truncates an episode; None if never or unknown.
        hidden: the shapes of the parts with two axes or more that flattening makes part of a vector.
    """

    observation_space: gymnasium.spaces.Box
    action_space: ActionSpace
    frames_per_second: int = 30
    stack: int = 1
    max_episode_steps: int | None = None
    hidden: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, envs: VectorEnv, *, stack: int = 1, max_episode_steps: int | None = None) -> Self:
        """Return the spec of environments that have been made, with the stack and limit of their id."""
        found = envs.observation_space, envs.action_space, envs.frames_per_second
        return cls(*found, stack, max_episode_steps, tuple(envs.conversion.hidden))

    @property
    def bytes(self) -> bool:
        """Whether observations are bytes (uint8)."""
        return self.observation_space.dtype == np.uint8

    @property
    def image(self) -> bool:
        """Whether observations are images, that is bytes with three axes."""
        return self.bytes and len(self.observation_space.shape) == 3

    @property
    def continuous(self) -> bool:
        """Whether actions are a Box."""
        return isinstance(self.action_space, gymnasium.spaces.Box)
