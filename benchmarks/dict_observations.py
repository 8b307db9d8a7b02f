"""What do observations of several parts cost? PPO on MiniGrid's Dict, beside its pixels alone as a plain Box.

python benchmarks/dict_observations.py --pairs 9

Both train in this process, in turn; which goes first alternates, and only ratios within a pair are compared, with a
bootstrap interval of their median. Without the package minigrid an environment of the same spaces takes 60 µs a step.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pairs import interval

import polyactor as pa

MINIGRID = importlib.util.find_spec("minigrid") is not None
STEP_SECONDS = 60e-6
"""Time of a step where minigrid is absent: about what MiniGrid takes."""


class Grid(gymnasium.Env[Any, Any]):
    """An environment of MiniGrid's spaces, whose observations do not change."""

    def __init__(self) -> None:
        image = spaces.Box(0, 255, (7, 7, 3), np.uint8)
        parts = {"image": image, "direction": spaces.Discrete(4), "mission": spaces.Text(20)}
        self.observation_space, self.action_space = spaces.Dict(parts), spaces.Discrete(7)
        self.seen = {"image": np.full((7, 7, 3), 3, np.uint8), "direction": 1, "mission": "go"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Start a game."""
        super().reset(seed=seed)
        self.steps = 0
        return self.seen, {}

    def step(self, action: Any) -> Any:
        """Take the time of a step; a game has 100."""
        end = time.perf_counter() + STEP_SECONDS
        while time.perf_counter() < end:
            pass
        self.steps += 1
        return self.seen, 0.0, False, self.steps >= 100, {}


class Pixels(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows the image of a Dict alone."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        self.observation_space = env.observation_space["image"]

    def observation(self, observation: Any) -> Any:
        """Return the image of an observation."""
        return observation["image"]


def made(*, alone: bool) -> gymnasium.Env[Any, Any]:
    """Make the environment, with its pixels alone or with all its parts."""
    env: gymnasium.Env[Any, Any] = gymnasium.make("minigrid:MiniGrid-DoorKey-5x5-v0") if MINIGRID else Grid()
    return Pixels(env) if alone else env


def speed(steps: int, *, alone: bool) -> float:
    """Return the steps per second of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = pa.train(
            "ppo", env=partial(made, alone=alone), steps=steps, out=str(Path(folder) / "run"), quiet=True,
            transport="inline", evaluate={"envs": 0},
        )  # fmt: skip
    return float(run.summary["steps_per_s"])


def main() -> None:
    """Print the speed of each pair, the median of the ratios and its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    print("minigrid:MiniGrid-DoorKey-5x5-v0" if MINIGRID else "minigrid is absent: an environment of its spaces")
    ratios = []
    for pair in range(options.pairs):
        found = {alone: speed(options.steps, alone=alone) for alone in (pair % 2 == 0, pair % 2 == 1)}
        ratios.append(found[False] / found[True])
        print(f"Dict {found[False]:8.0f} steps/s, pixels {found[True]:8.0f}, ratio {ratios[-1]:.3f}", flush=True)
    low, high = interval(ratios)
    print(f"ratio {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] of {len(ratios)} pairs")


if __name__ == "__main__":
    main()
