"""Environments: any Gymnasium id, `module:name`, `file.py:name` or Python callable, as one `VectorEnv`.

This package does not import torch, and imports ale-py only for Atari ids.

* `vector_env`: `VectorEnv`, the interface of B environments.
* `spec`: `EnvSpec`, spaces and limits of one environment.
* `conversion`: observations and actions of Gymnasium's spaces as a policy sees and takes them, and back.
* `gymnasium_env`, `serial_vector_env`: environments of Gymnasium, and B of them stepped one after the other.
* `atari`, `atari_exact`: Atari games by ale-py, and Atari games whose state can be saved.
* `diagnostic`: small environments with known optimal values.
* `snapshot`: saving and restoring an environment's state.
* `check`: a report on whether an environment can be trained in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

import numpy as np
from gymnasium.envs.registration import EnvSpec as Registered

from polyactor.envs import atari as _atari
from polyactor.envs import diagnostic, gymnasium_env
from polyactor.envs.atari import AtariOptions
from polyactor.envs.gymnasium_env import EnvFactory, name_of, resolved
from polyactor.envs.spec import EnvSpec
from polyactor.envs.vector_env import ActionSpace, Listener, Step, VectorEnv
from polyactor.errors import EnvironmentUnsupported
from polyactor.files import same_directory

__all__ = [
    "ActionSpace",
    "AtariOptions",
    "EnvFactory",
    "EnvSpec",
    "Listener",
    "Specs",
    "Step",
    "VectorEnv",
    "check_exact",
    "env_spec",
    "is_atari",
    "make_envs",
    "name_of",
    "resolved",
]

diagnostic.register()


def make_envs(
    env: str | EnvFactory,
    num_envs: int,
    *,
    atari: AtariOptions = AtariOptions(),  # noqa: B008 (frozen)
    max_episode_steps: int | None = None,
    threads: int = 1,
    saved: bool = False,
    render: bool = False,
    listener: Listener | None = None,
) -> VectorEnv:
    """Make B copies of one environment.

    Args:
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable``, the same in a file, as ``file.py:callable``, or a
            callable that returns one `gymnasium.Env`.
        num_envs: B.
        atari: preprocessing of Atari games; other environments ignore it.
        max_episode_steps: truncate an episode after this many agent steps. This replaces the limit of an id; an
            environment that a callable returns keeps its limit besides.
        threads: emulator threads of Atari games; other environments ignore it.
        saved: whether `snapshot` will be taken of the environments, possibly after they were closed.
        render: whether `render` shall return pictures of environment 0.
        listener: told before each call of an environment; only environments that are stepped serially tell it.

    Raises:
        EnvironmentUnsupported: the environment is unknown, not installed or not one of Gymnasium, or has a space that
            polyactor does not support.
    """
    source = gymnasium_env.find(env)
    if isinstance(source, Registered) and _atari.is_atari(source):
        return _atari.AtariEnvs(
            source,
            num_envs,
            options=atari,
            max_episode_steps=max_episode_steps,
            threads=threads,
            saved=saved,
            render=render,
        )
    return gymnasium_env.GymnasiumEnvs(
        source, num_envs, max_episode_steps=max_episode_steps, saved=saved, render=render, listener=listener
    )


def env_spec(env: str | EnvFactory, *, atari: AtariOptions = AtariOptions()) -> EnvSpec:  # noqa: B008 (frozen)
    """Return spaces and limits of an environment, of which one copy is made and closed again.

    Args:
        env: an environment as in `make_envs`.
        atari: preprocessing of Atari games; other environments ignore it.

    Raises:
        EnvironmentUnsupported: the environment cannot be made, as in `make_envs`.
    """
    source = gymnasium_env.find(env)
    stack = atari.stack if isinstance(source, Registered) and _atari.is_atari(source) else 1
    limit = source.max_episode_steps if isinstance(source, Registered) else None
    with same_directory(), closing(make_envs(env, 1, atari=atari)) as envs:
        return EnvSpec.of(envs, stack=stack, max_episode_steps=limit)


def is_atari(env: str | EnvFactory) -> bool:
    """Return whether an environment is an Atari game of ale-py, including old ids such as Pong-v4.

    Raises:
        EnvironmentUnsupported: the environment is unknown or not installed.
    """
    if isinstance(env, str) and _atari.looks_atari(env):
        return True
    source = gymnasium_env.find(env)
    return isinstance(source, Registered) and _atari.is_atari(source)


PROOF_STEPS = 100
"""Number of random steps that `check_exact` takes before the snapshot, and again after it."""


def check_exact(
    env: str | EnvFactory,
    *,
    atari: AtariOptions = AtariOptions(),  # noqa: B008 (frozen)
    max_episode_steps: int | None = None,
) -> None:
    """Check that an environment continues from a snapshot exactly, by comparing two copies over random steps.

    Raises:
        EnvironmentUnsupported: it cannot be saved, or a restored copy gives other observations, rewards or ends.
    """

    def two() -> AbstractContextManager[VectorEnv]:
        return closing(make_envs(env, 2, atari=atari, max_episode_steps=max_episode_steps, saved=True))

    with two() as first, two() as second:
        first.reset(1)
        second.reset(10_000)
        first.action_space.seed(0)
        actions = [np.stack([first.action_space.sample() for _ in range(2)]) for _ in range(2 * PROOF_STEPS)]
        for action in actions[:PROOF_STEPS]:
            first.step(action)
        second.restore(first.snapshot())
        for action in actions[PROOF_STEPS:]:
            for ours, theirs in zip(first.step(action)[:-1], second.step(action)[:-1], strict=True):
                if ours.tobytes() != theirs.tobytes():
                    raise EnvironmentUnsupported(
                        f"{name_of(env)} does not go on from its saved state as it did: "
                        "part of it is not in its attributes."
                    )


class Specs:
    """`env_spec` with a cache, so that each environment is made at most once to learn its spaces and limits."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | int, AtariOptions | None], EnvSpec] = {}

    def __call__(self, env: str | EnvFactory, *, atari: AtariOptions = AtariOptions()) -> EnvSpec:  # noqa: B008
        """Return spaces and limits of an environment, from the cache if it is known.

        Raises:
            EnvironmentUnsupported: the environment cannot be made, as in `make_envs`.
        """
        key = (env if isinstance(env, str) else id(env), atari if is_atari(env) else None)
        if key not in self._known:
            self._known[key] = env_spec(env, atari=atari)
        return self._known[key]
