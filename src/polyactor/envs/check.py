"""A report on whether an environment can be trained in, to be read before a long run."""

from __future__ import annotations

import time

import numpy as np

from polyactor.envs import EnvFactory, EnvSpec, draw, looked_at, name_of
from polyactor.errors import EnvironmentUnsupported

STEPS = 500
"""Most random steps of each environment."""
ENOUGH = 8.0
"""Seconds after which no more steps are taken."""
DEADLINE = 4.0
"""Seconds that a step may take, where nobody says otherwise; a constructor and a reset have five times as long."""
LARGE = 1e4
"""Size of observations above which `check` advises to scale them: they would saturate the first layer of an MLP."""


def inspect(env: str | EnvFactory, num_envs: int = 4, *, seconds: float = DEADLINE) -> str:
    """Take random steps in an environment, and report its spaces, rewards, number of finished games and speed.

    Args:
        env: the environment, as in `make_envs`.
        num_envs: the number of copies that are stepped.
        seconds: the deadline of a step, with that of all else as in `Call.factor`.

    Raises:
        EnvironmentUnsupported: the environment is not supported, failed, missed its deadline, or returned a NaN or an
            infinity.
    """
    with looked_at(env, num_envs, seconds=seconds) as (envs, asked):
        rng = np.random.default_rng(0)
        asked.asked(-1, None)
        envs.reset(seed=0)
        asked.answered()
        rewards, ends, largest, steps, start = [], 0, 0.0, 0, time.perf_counter()
        while steps < STEPS and (time.perf_counter() < start + ENOUGH or not steps):
            action = draw(envs.action_space, num_envs, rng, envs.action_mask)
            observation, reward, _, done, _, why = envs.step(action)
            asked.answered()
            if why:
                raise EnvironmentUnsupported(f"{why[0].removesuffix(': made anew')}.")
            seen = observation.values() if isinstance(observation, dict) else [observation]
            for what, values in (*(("an observation", each) for each in seen), ("a reward", reward)):
                if not np.isfinite(values).all():
                    raise EnvironmentUnsupported(f"{name_of(env)} gave {what} that is not finite at step {steps}")
            rewards.append(reward)
            largest = max([largest, *(float(np.abs(each).max(initial=0)) for each in seen)])
            ends += int(done.sum())
            steps += 1
        rate = steps * num_envs / (time.perf_counter() - start)
        action_space, spec = envs.action_space, EnvSpec.of(envs)
    size = f"up to {largest:.3g} in size" + "; --normalize.observation scales them" * (largest > LARGE)
    return "\n".join(
        [
            f"{name_of(env)} is fit for training.",
            *(
                f"  {f'observation {name}':13} {box.dtype} {list(box.shape)}, {size}"
                for name, box in spec.entries.items()
            ),
            f"  action        {action_space}",
            f"  reward        {np.min(rewards):g} to {np.max(rewards):g} in {steps * num_envs:,} random steps",
            f"  games ended   {ends}",
            f"  speed         {rate:,.0f} steps/s, {num_envs} environments in one process",
        ]
    )
