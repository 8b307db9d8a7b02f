"""What an environment looks like from outside: asked once, before a run, and handed down to everything in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import gymnasium
import numpy as np

from polyactor.envs.vector_env import ActionSpace, VectorEnv


@dataclass(frozen=True)
class EnvSpec:
    """Spaces and limits of one environment, as `VectorEnv` shows it.

    Attributes:
        observation_space: shape ``[*O]`` and dtype, uint8 or float32, of one observation.
        action_space: what a policy acts in.
        frames_per_second: of a film at the speed of the real thing.
        stack: frames in one observation, the newest last; 1 where observations are no stacks.
        max_episode_steps: agent steps after which the environment itself truncates an episode; None: never, or unknown.
    """

    observation_space: gymnasium.spaces.Box
    action_space: ActionSpace
    frames_per_second: int = 30
    stack: int = 1
    max_episode_steps: int | None = None

    @classmethod
    def of(cls, envs: VectorEnv, *, stack: int = 1, max_episode_steps: int | None = None) -> Self:
        """The spec of environments that have been made."""
        return cls(envs.observation_space, envs.action_space, envs.frames_per_second, stack, max_episode_steps)

    @property
    def bytes(self) -> bool:
        """Whether observations are bytes; those with three axes are images."""
        return self.observation_space.dtype == np.uint8

    @property
    def image(self) -> bool:
        """Whether observations are images: bytes with three axes."""
        return self.bytes and len(self.observation_space.shape) == 3

    @property
    def continuous(self) -> bool:
        """Whether actions are a Box."""
        return isinstance(self.action_space, gymnasium.spaces.Box)
