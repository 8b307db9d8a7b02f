"""Stable-Baselines3: A2C or PPO on Atari, CartPole or MuJoCo, one process with `DummyVecEnv`.

Atari through its own `make_atari_env` and `VecFrameStack`; every setting that is not named is its default.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ale_py  # noqa: F401 - registers the games
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

INTERVAL = 0.2
"""Seconds between two lines, unless an update takes longer."""
GAMES = 100


class Report(BaseCallback):
    """Prints the steps that updates have consumed, those of every rollout before the one that begins, and the score.

    The score is the mean of the last 100 games, once there are so many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last = 0.0

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        if now - self.last >= INTERVAL:
            self.last = now
            scores = [game["r"] for game in self.model.ep_info_buffer]
            mean = f" score {sum(scores) / len(scores):.3f}" if len(scores) == GAMES else ""
            print(f"steps {self.num_timesteps}{mean}", flush=True)

    def _on_step(self) -> bool:
        return True


def main(settings: dict[str, Any]) -> None:
    """Train until killed."""
    torch.set_num_threads(settings["threads"])
    atari = "NoFrameskip" in settings["env"]
    policy = "CnnPolicy" if atari else "MlpPolicy"
    envs = make_envs(settings["env"], settings["envs"], atari=atari)
    model = {"a2c": A2C, "ppo": PPO}[settings["algorithm"]](
        policy, envs, device="cpu", seed=settings.get("seed"), **settings["values"]
    )
    model.learn(10**12, callback=Report())


def make_envs(env: str, count: int, *, atari: bool) -> VecEnv:
    """So many environments in this process."""
    return VecFrameStack(make_atari_env(env, count), 4) if atari else make_vec_env(env, count)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
