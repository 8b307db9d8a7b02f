"""An environment of one's own, and training in it for a few seconds: python examples/own_environment.py

The command line trains in it, too, from this directory: polyactor train a3c --env own_environment:Corridor
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import polyactor as pa


class Corridor(gymnasium.Env[np.ndarray, np.int64]):
    """A corridor of ten steps, from its left end to the goal, which pays 1; each step before costs 0.01."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    length = 10

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = max(0, self.position + (1 if action == 1 else -1))
        at_goal = self.position == self.length
        return self._observation(), 1.0 if at_goal else -0.01, at_goal, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.position / self.length], np.float32)


if __name__ == "__main__":  # worker processes import this file, too
    run = pa.train("a3c", env="own_environment:Corridor", steps=20_000, max_episode_steps=200)
    print(f"mean return of 100 episodes: {run.summary['best_score_mean100']:.2f} of at most 0.91")
