"""Environments: any Gymnasium id, `module:Env-v0`, `module:callable` or Python callable, as one `VectorEnv`.

Nothing here imports torch, and ale-py only once an Atari id is asked for.
"""

from __future__ import annotations

from gymnasium.envs.registration import EnvSpec

from polyactor.envs import atari as _atari
from polyactor.envs import diagnostic, gymnasium_env
from polyactor.envs.atari import AtariOptions, looks_atari
from polyactor.envs.gymnasium_env import EnvFactory
from polyactor.envs.vector_env import ActionSpace, Step, VectorEnv

__all__ = ["ActionSpace", "AtariOptions", "EnvFactory", "Step", "VectorEnv", "check_env", "looks_atari", "make_envs"]

diagnostic.register()


def make_envs(
    env: str | EnvFactory,
    num_envs: int,
    *,
    atari: AtariOptions = AtariOptions(),  # noqa: B008 (frozen)
    max_episode_steps: int | None = None,
    threads: int = 1,
    render: bool = False,
) -> VectorEnv:
    """`num_envs` copies of one environment.

    Args:
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable`` or a callable that returns one `gymnasium.Env`.
        num_envs: B.
        atari: preprocessing; only Atari ids read it.
        max_episode_steps: truncate a game after this many agent steps, in place of the id's own limit
            (of an environment a callable returns: besides its own).
        threads: emulator threads; only Atari ids read it.
        render: make pictures of environment 0 available through `render`.

    Raises:
        EnvironmentUnsupported: unknown, not installed, not a Gymnasium environment, or in a space nobody can act in.
    """
    source = gymnasium_env.find(env)
    if isinstance(source, EnvSpec) and _atari.is_atari(source):
        return _atari.AtariEnvs(
            source, num_envs, options=atari, max_episode_steps=max_episode_steps, threads=threads, render=render
        )
    return gymnasium_env.GymnasiumEnvs(source, num_envs, max_episode_steps=max_episode_steps, render=render)


def check_env(env: str | EnvFactory) -> None:
    """Refuse what `make_envs` would refuse, at the price of at most one single environment (none for Atari ids).

    Raises:
        EnvironmentUnsupported: as `make_envs`.
    """
    source = gymnasium_env.find(env)
    if isinstance(source, EnvSpec) and _atari.is_atari(source):
        _atari.check(source)
    else:
        gymnasium_env.check(source)
