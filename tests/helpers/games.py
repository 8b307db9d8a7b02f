"""Environments whose scores and lengths are known."""

from __future__ import annotations

from itertools import count
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Games(gymnasium.Env[Any, Any]):
    """The k-th one made plays games of 3 + k steps at k + 1 points a step."""

    made = count()

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1e9, 1e9, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.number, self.steps = next(Games.made), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps == 3 + self.number
        terminated = ended and self.number % 2 == 0  # the others are truncated: that ends a game too
        return np.full(1, self.steps, np.float32), self.number + 1.0, terminated, ended and not terminated, {}


class Endless(gymnasium.Env[Any, Any]):
    """Never ends; counts its steps, or stands still."""

    moves = True

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1e9, 1e9, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(1, self.steps * self.moves, np.float32), float(self.moves), False, False, {}
