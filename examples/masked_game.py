"""A game with illegal moves, and training in it for a few seconds: python examples/masked_game.py

The command line trains in it, too, from this directory: polyactor train ppo --env masked_game:Nim
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import polyactor as pa


class Nim(gymnasium.Env[np.int64, np.int64]):
    """21 sticks lie on the table, each player in turn takes one to three, and who takes the last one wins.

    The other player takes as many as chance says, but the last ones if it can. Nobody may take more than there are.
    """

    observation_space = spaces.Discrete(22)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.sticks = 21
        return np.int64(self.sticks), self._info()

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self.sticks -= int(action) + 1
        if self.sticks == 0:
            return np.int64(0), 1.0, True, False, self._info()
        drawn = int(self.np_random.integers(1, min(3, self.sticks) + 1))
        self.sticks -= self.sticks if self.sticks <= 3 else drawn
        return np.int64(self.sticks), 0.0, self.sticks == 0, False, self._info()

    def _info(self) -> dict[str, Any]:
        """Where the game is over no move is legal, which is no matter: nothing is played there."""
        return {"action_mask": np.arange(1, 4) <= self.sticks}


if __name__ == "__main__":  # worker processes import this file, too
    run = pa.train("ppo", env="masked_game:Nim", steps=40_000)
    print(f"games won of 100: {100 * run.summary['best_score_mean100']:.0f}")
