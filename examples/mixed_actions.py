"""A choice and a number in one action, and training in it for a few seconds: python examples/mixed_actions.py

The command line trains in it, too, from this directory: polyactor train ppo --env mixed_actions:Golf
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import polyactor as pa


class Golf(gymnasium.Env[np.ndarray, dict[str, Any]]):
    """A hole up to 300 m away: in each stroke a club is chosen, and how hard to swing it. A stroke costs 1."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Dict({"club": spaces.Discrete(3), "swing": spaces.Box(0, 1, (1,), np.float32)})
    metres = (200.0, 50.0, 10.0)  # of a driver, an iron and a putter, with a full swing

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.distance = self.np_random.uniform(20, 300)
        return self._observation(), {}

    def step(self, action: dict[str, Any]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        flight = self.metres[action["club"]] * float(action["swing"][0])
        self.distance = abs(self.distance - flight * self.np_random.normal(1, 0.03))
        return self._observation(), -1.0, self.distance < 1, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([np.log(max(self.distance, 1e-3))], np.float32)


if __name__ == "__main__":  # worker processes import this file, too
    run = pa.train("ppo", env="mixed_actions:Golf", steps=60_000, max_episode_steps=30)
    print(f"strokes a hole: {-run.summary['best_score_mean100']:.1f}")
