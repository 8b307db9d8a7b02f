"""A report on whether an environment can be trained in, to be read before a long run."""

from __future__ import annotations

import time

import numpy as np

from polyactor.envs import EnvFactory, make_envs
from polyactor.errors import EnvironmentUnsupported

STEPS = 500
"""Number of random steps of each environment."""


def inspect(env: str | EnvFactory, num_envs: int = 4) -> str:
    """Take random steps in an environment, and report its spaces, rewards, number of finished games and speed.

    Raises:
        EnvironmentUnsupported: the environment is not supported, failed, or returned a NaN or an infinity.
    """
    envs = make_envs(env, num_envs)
    try:
        rng = np.random.default_rng(0)
        envs.action_space.seed(0)
        actions = [envs.action_space.sample() for _ in range(64)]
        envs.reset(seed=0)
        rewards, ends, start = [], 0, time.perf_counter()
        for step in range(STEPS):
            action = np.stack([actions[i] for i in rng.integers(64, size=num_envs)])
            observation, reward, _, done, _, why = envs.step(action)
            if why:
                raise EnvironmentUnsupported(f"{why[0].removesuffix(': made anew')}.")
            for what, values in (("an observation", observation), ("a reward", reward)):
                if not np.isfinite(values).all():
                    raise EnvironmentUnsupported(f"{env} gave {what} that is not finite at step {step}")
            rewards.append(reward)
            ends += int(done.sum())
        rate = STEPS * num_envs / (time.perf_counter() - start)
        action_space, observation_space = envs.action_space, envs.observation_space
    finally:
        envs.close()
    return "\n".join(
        [
            f"{env} is fit for training.",
            f"  observation   {observation_space.dtype} {list(observation_space.shape)}",
            f"  action        {action_space}",
            f"  reward        {np.min(rewards):g} to {np.max(rewards):g} in {STEPS * num_envs:,} random steps",
            f"  games ended   {ends}",
            f"  speed         {rate:,.0f} steps/s, {num_envs} environments in one process",
        ]
    )
