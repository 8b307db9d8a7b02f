"""Stable-Baselines3: A2C or PPO on Atari, CartPole or MuJoCo, one process with `DummyVecEnv`.

Atari through its own `make_atari_env` and `VecFrameStack`; every setting that is not named here is its default.
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


class Report(BaseCallback):
    """Prints the steps that updates have consumed: those of every rollout before the one that begins."""

    def __init__(self) -> None:
        super().__init__()
        self.last = 0.0

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        if now - self.last >= INTERVAL:
            self.last = now
            print(f"steps {self.num_timesteps}", flush=True)

    def _on_step(self) -> bool:
        return True


def main(settings: dict[str, Any]) -> None:
    """Train until killed."""
    torch.set_num_threads(settings["threads"])
    atari = "NoFrameskip" in settings["env"]
    policy = "CnnPolicy" if atari else "MlpPolicy"
    envs = make_envs(settings["env"], settings["envs"], atari=atari)
    if settings["algorithm"] == "a2c":
        model: A2C | PPO = A2C(policy, envs, n_steps=settings["rollout"], device="cpu")
    else:
        model = PPO(
            policy,
            envs,
            n_steps=settings["rollout"],
            batch_size=settings["minibatch"],
            n_epochs=settings["epochs"],
            device="cpu",
        )
    model.learn(10**12, callback=Report())


def make_envs(env: str, count: int, *, atari: bool) -> VecEnv:
    """So many environments in this process."""
    return VecFrameStack(make_atari_env(env, count), 4) if atari else make_vec_env(env, count)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
