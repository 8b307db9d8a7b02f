"""An environment that counts its steps, and a small run of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polyactor.algorithms import A2C
from polyactor.config import Config
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import Hogwild

FOR_EVER = 10**9


class Counting(gymnasium.Env[Any, Any]):
    """Observations of noise, reward 1, games of 10 steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), 1.0, self.steps == 10, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def config_of(env: Any = Counting, **values: Any) -> Config:
    standard = Config(
        env=env,
        algorithm=A2C(),
        scheme=Hogwild(),
        optimizer=Adam(lr=1e-3),
        steps=FOR_EVER,
        workers=2,
        envs=2,
        rollout=5,
        model=ModelSpec(hidden=(8,)),
    )
    return replace(standard, **values)
