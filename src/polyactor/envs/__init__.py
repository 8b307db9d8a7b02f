"""Environments: any Gymnasium id, `module:Env-v0`, `module:callable` or Python callable, as one `VectorEnv`.

Nothing here imports torch, and ale-py only once an Atari id is asked for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

import numpy as np
from gymnasium.envs.registration import EnvSpec as Registered

from polyactor.envs import atari as _atari
from polyactor.envs import diagnostic, gymnasium_env
from polyactor.envs.atari import AtariOptions
from polyactor.envs.gymnasium_env import EnvFactory
from polyactor.envs.spec import EnvSpec
from polyactor.envs.vector_env import ActionSpace, Listener, Step, VectorEnv
from polyactor.errors import EnvironmentUnsupported

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
    """`num_envs` copies of one environment.

    Args:
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable`` or a callable that returns one `gymnasium.Env`.
        num_envs: B.
        atari: preprocessing; only Atari ids read it.
        max_episode_steps: truncate a game after this many agent steps, in place of the id's own limit
            (of an environment a callable returns: besides its own).
        threads: emulator threads; only Atari ids read it.
        saved: of a kind whose `snapshot` can be taken, also when they have been closed.
        render: make pictures of environment 0 available through `render`.
        listener: told what is asked of each environment; only those that are stepped one after the other tell it.

    Raises:
        EnvironmentUnsupported: unknown, not installed, not a Gymnasium environment, or in a space nobody can act in.
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
    """What an environment looks like, from one copy of it that is closed again before this returns.

    Args:
        env: as `make_envs` takes it.
        atari: preprocessing; only Atari ids read it.

    Raises:
        EnvironmentUnsupported: as `make_envs`.
    """
    source = gymnasium_env.find(env)
    stack = atari.stack if isinstance(source, Registered) and _atari.is_atari(source) else 1
    limit = source.max_episode_steps if isinstance(source, Registered) else None
    with closing(make_envs(env, 1, atari=atari)) as envs:
        return EnvSpec.of(envs, stack=stack, max_episode_steps=limit)


def is_atari(env: str | EnvFactory) -> bool:
    """Whether it is one of ale-py's, however its id is written (Pong-v4, too).

    Raises:
        EnvironmentUnsupported: unknown, or not installed.
    """
    if isinstance(env, str) and _atari.looks_atari(env):
        return True
    source = gymnasium_env.find(env)
    return isinstance(source, Registered) and _atari.is_atari(source)


PROOF_STEPS = 100
"""Random ones, before and after the snapshot that `check_exact` goes on from."""


def check_exact(
    env: str | EnvFactory,
    *,
    atari: AtariOptions = AtariOptions(),  # noqa: B008 (frozen)
    max_episode_steps: int | None = None,
) -> None:
    """Refuse what would not go on from a snapshot to the bit, which is tried out with two copies.

    Raises:
        EnvironmentUnsupported: it cannot be saved, or what was saved is not all of it.
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
                    name = getattr(env, "__qualname__", env)
                    raise EnvironmentUnsupported(
                        f"{name} does not go on from its saved state as it did: part of it is not in its attributes."
                    )


class Specs:
    """`env_spec` with a memory: whoever asks again for the same environment, even in the end, makes it only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | int, AtariOptions | None], EnvSpec] = {}

    def __call__(self, env: str | EnvFactory, *, atari: AtariOptions = AtariOptions()) -> EnvSpec:  # noqa: B008
        """What an environment looks like.

        Raises:
            EnvironmentUnsupported: as `make_envs`.
        """
        key = (env if isinstance(env, str) else id(env), atari if is_atari(env) else None)
        if key not in self._known:
            self._known[key] = env_spec(env, atari=atari)
        return self._known[key]
