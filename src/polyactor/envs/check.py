"""A report on whether an environment can be trained in, to be read before a long run."""

from __future__ import annotations

import time

import numpy as np

from polyactor.envs import EnvFactory, make_envs, name_of
from polyactor.errors import EnvironmentUnsupported

STEPS = 500
"""Number of random steps of each environment."""
LARGE = 1e4
"""Size of observations above which `check` advises to scale them: they would saturate the first layer of an MLP."""


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
        rewards, ends, largest, start = [], 0, 0.0, time.perf_counter()
        for step in range(STEPS):
            action = np.stack([actions[i] for i in rng.integers(64, size=num_envs)])
            observation, reward, _, done, _, why = envs.step(action)
            if why:
                raise EnvironmentUnsupported(f"{why[0].removesuffix(': made anew')}.")
            for what, values in (("an observation", observation), ("a reward", reward)):
                if not np.isfinite(values).all():
                    raise EnvironmentUnsupported(f"{name_of(env)} gave {what} that is not finite at step {step}")
            rewards.append(reward)
            largest = max(largest, float(np.abs(observation).max(initial=0)))
            ends += int(done.sum())
        rate = STEPS * num_envs / (time.perf_counter() - start)
        action_space, observation_space = envs.action_space, envs.observation_space
    finally:
        envs.close()
    size = f"up to {largest:.3g} in size" + "; --normalize.observation scales them" * (largest > LARGE)
    return "\n".join(
        [
            f"{name_of(env)} is fit for training.",
            f"  observation   {observation_space.dtype} {list(observation_space.shape)}, {size}",
            f"  action        {action_space}",
            f"  reward        {np.min(rewards):g} to {np.max(rewards):g} in {STEPS * num_envs:,} random steps",
            f"  games ended   {ends}",
            f"  speed         {rate:,.0f} steps/s, {num_envs} environments in one process",
        ]
    )
