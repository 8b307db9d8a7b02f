"""Environments: any Gymnasium id, `module:name`, `file.py:name` or Python callable, as one `VectorEnv`.

This package does not import torch, and imports ale-py only for Atari ids.

* `vector_env`: `VectorEnv`, the interface of B environments.
* `environment`: `Environment`, what an environment is made of: id or callable, arguments, wrappers, size of images.
* `finding`: what names of environments and wrappers stand for.
* `spec`: `EnvSpec`, spaces and limits of one environment.
* `resizing`: images of another size.
* `conversion`: observations and actions of Gymnasium's spaces as a policy sees and takes them, and back.
* `action_masks`: which choices are legal, as an environment says it.
* `answers`: what environments answer: checks of it, and failures in words.
* `gymnasium_env`, `serial_vector_env`: making environments of Gymnasium, and B of them stepped one after the other.
* `atari`, `atari_exact`: Atari games by ale-py, and Atari games whose state can be saved.
* `diagnostic`: small environments with known optimal values.
* `snapshot`: saving and restoring an environment's state.
* `check`: a report on whether an environment can be trained in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec as Registered

from polyactor.envs import atari as _atari
from polyactor.envs import diagnostic, gymnasium_env
from polyactor.envs.action_masks import draw
from polyactor.envs.atari import AtariOptions
from polyactor.envs.environment import EnvFactory, Environment, Wrapper, name_of
from polyactor.envs.finding import find, resolved
from polyactor.envs.spec import EnvSpec
from polyactor.envs.vector_env import ActionSpace, Listener, Step, VectorEnv
from polyactor.errors import CheckpointError, EnvironmentUnsupported, UsageError
from polyactor.files import same_directory
from polyactor.system.deadline import Answers, Call, bounded
from polyactor.system.process_state import kept_streams, kept_switches, moved, streams
from polyactor.system.streams import lasting_streams

__all__ = [
    "ActionSpace",
    "AtariOptions",
    "EnvFactory",
    "EnvSpec",
    "Environment",
    "Listener",
    "Specs",
    "Step",
    "VectorEnv",
    "Wrapper",
    "check_exact",
    "draw",
    "env_spec",
    "is_atari",
    "looked_at",
    "make_envs",
    "name_of",
    "resolved",
]

diagnostic.register()


def make_envs(
    env: str | EnvFactory | Environment,
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
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable``, the same in a file, as ``file.py:callable``, a
            callable that returns one `gymnasium.Env`, or an `Environment`, which has arguments and wrappers besides.
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
            polyactor does not support; or a wrapper is unknown, fails or returns no environment.
        UsageError: an argument is not known, there are wrappers around a game of Atari, or there is no image to resize.
    """
    found = find(env)
    if isinstance(found.source, Registered) and _atari.is_atari(found.source):
        if found.wrappers:
            raise UsageError(
                f"--env-wrapper {found.wrappers[0][0]} is not allowed with {found.name}: games of Atari run together "
                "in one emulator, but a wrapper has one environment; wrap a game in a function: --env FILE.py:FUNCTION"
            )
        if found.resize:
            raise UsageError(
                f"--env-resize {' '.join(map(str, found.resize))} is not allowed with {found.name}: frames of Atari "
                "have a size of their own: use --atari.frame-size"
            )
        return _atari.AtariEnvs(
            _atari.made_with(found.source, found.kwargs),
            num_envs,
            options=atari,
            max_episode_steps=max_episode_steps,
            threads=threads,
            saved=saved,
            render=render,
        )
    return gymnasium_env.GymnasiumEnvs(
        found, num_envs, max_episode_steps=max_episode_steps, saved=saved, render=render, listener=listener
    )


ENV_TIMEOUT = 60.0
"""Seconds that an environment may take for a step, where nobody says otherwise."""


@contextmanager
def looked_at(
    env: str | EnvFactory | Environment,
    num_envs: int,
    *,
    seconds: float,
    listening: Callable[[Answers], Listener] | None = None,
    **options: Any,
) -> Iterator[tuple[VectorEnv, Listener]]:
    """Yield environments that are made, looked at and closed again, each call bounded, and who is told of calls.

    Global state of this process is put back after it: the working directory, random streams, handlers of signals and
    switches.

    Args:
        env: an environment as in `make_envs`.
        num_envs: B.
        seconds: the deadline of a step, with that of all else as in `Call.factor`.
        listening: returns who is told of calls, and tells what keeps the deadlines.
        options: further arguments of `make_envs`.

    Raises:
        Unanswered: the environment missed its deadline.
        EnvironmentUnsupported: the environment cannot be made, as in `make_envs`.
    """
    with (
        same_directory(),
        lasting_streams(),
        kept_streams(),
        kept_switches(),
        bounded(name_of(env), seconds) as answers,
    ):
        told: Listener = answers if listening is None else listening(answers)
        told.asked(-1, None, Call.CONSTRUCTOR)
        envs = make_envs(env, num_envs, listener=told, **options)
        told.answered()
        try:
            yield envs, told
        finally:
            told.asked(-1, None, Call.CLOSE)
            envs.close()
            told.answered()


def env_spec(
    env: str | EnvFactory | Environment,
    *,
    atari: AtariOptions = AtariOptions(),  # noqa: B008 (frozen)
    seconds: float = ENV_TIMEOUT,
) -> EnvSpec:
    """Return spaces and limits of an environment, of which one copy is made and closed again.

    Args:
        env: an environment as in `make_envs`.
        atari: preprocessing of Atari games; other environments ignore it.
        seconds: the deadline of a step, with that of all else as in `Call.factor`.

    Raises:
        EnvironmentUnsupported: the environment cannot be made, as in `make_envs`, or missed its deadline.
    """
    found = find(env)
    source = found.source
    stack = atari.stack if isinstance(source, Registered) and _atari.is_atari(source) else 1
    limit = source.max_episode_steps if isinstance(source, Registered) and not found.wrappers else None
    with looked_at(env, 1, atari=atari, seconds=seconds) as (envs, asked):
        if envs.action_mask is None and stack == 1:  # masks are known after a reset only, and Atari gives none
            asked.asked(-1, None)
            envs.reset(None)
            asked.answered()
        return EnvSpec.of(envs, stack=stack, max_episode_steps=limit)


def is_atari(env: str | EnvFactory | Environment) -> bool:
    """Return whether an environment is an Atari game of ale-py, including old ids such as Pong-v4.

    Raises:
        EnvironmentUnsupported: the environment is unknown or not installed.
    """
    asked = Environment.of(env)
    if isinstance(asked.source, str) and _atari.looks_atari(asked.source):
        return True
    source = find(replace(asked, wrappers=())).source
    return isinstance(source, Registered) and _atari.is_atari(source)


PROOF_STEPS = 100
"""Number of random steps that `check_exact` takes before the snapshot, and again after it."""


def check_exact(
    env: str | EnvFactory | Environment,
    *,
    atari: AtariOptions = AtariOptions(),  # noqa: B008 (frozen)
    max_episode_steps: int | None = None,
    seconds: float = ENV_TIMEOUT,
) -> None:
    """Check that an environment continues from a snapshot exactly, by comparing two copies over random steps.

    Raises:
        EnvironmentUnsupported: it cannot be saved, a restored copy gives other observations, rewards or ends, it draws
            from global random streams, which are not saved, or it missed its deadline.
    """

    def two() -> AbstractContextManager[tuple[VectorEnv, Listener]]:
        options: dict[str, Any] = {"atari": atari, "max_episode_steps": max_episode_steps}
        return looked_at(env, 2, seconds=seconds, saved=True, **options)

    with two() as (first, asked_first), two() as (second, asked_second):
        before = streams()
        for envs, asked, seed in ((first, asked_first, 1), (second, asked_second, 10_000)):
            asked.asked(-1, None)
            envs.reset(seed)
            asked.answered()
        rng = np.random.default_rng(0)
        for _ in range(PROOF_STEPS):
            first.step(draw(first.action_space, 2, rng, first.action_mask))
            asked_first.answered()
        if drawn := moved(before):
            raise EnvironmentUnsupported(
                f"{name_of(env)} draws from the global random streams of {' and '.join(drawn)}, which are not saved."
            )
        saved = first.snapshot()
        try:
            second.restore(saved)
        except CheckpointError as error:
            raise EnvironmentUnsupported(f"{name_of(env)} cannot be saved: {error}.") from None
        for _ in range(PROOF_STEPS):
            action = draw(first.action_space, 2, rng, first.action_mask)
            ours, theirs = first.step(action), second.step(action)
            asked_first.answered()
            asked_second.answered()
            if _bytes(ours) != _bytes(theirs):
                raise EnvironmentUnsupported(
                    f"{name_of(env)} does not go on from its saved state as it did: part of it is not in its"
                    " attributes."
                )


def _bytes(step: Step) -> list[bytes]:
    """Return what a step says, entry by entry, but for the sentences about failures."""
    seen = step.observation.values() if isinstance(step.observation, dict) else [step.observation]
    return [each.tobytes() for each in (*seen, *step[1:-1])]


class Specs:
    """`env_spec` with a cache, so that each environment is made at most once to learn its spaces and limits.

    Args:
        seconds: the deadline of a step, as in `env_spec`.
    """

    def __init__(self, seconds: float = ENV_TIMEOUT) -> None:
        self.seconds = seconds
        self._known: dict[object, EnvSpec] = {}

    def __call__(self, env: str | EnvFactory | Environment, *, atari: AtariOptions = AtariOptions()) -> EnvSpec:  # noqa: B008
        """Return spaces and limits of an environment, from the cache if it is known.

        Raises:
            EnvironmentUnsupported: the environment cannot be made, as in `make_envs`.
        """
        asked = Environment.of(env)
        parts = [each if isinstance(each, str) else id(each) for each in (asked.source, *asked.wrappers)]
        key = (*parts, asked.arguments, asked.resize, atari if is_atari(asked) else None)
        if key not in self._known:
            self._known[key] = env_spec(asked, atari=atari, seconds=self.seconds)
        return self._known[key]
