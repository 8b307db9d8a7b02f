"""From a config to the parts a scheme places."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from polyactor.actor import Actor
from polyactor.board import Board
from polyactor.config import Config
from polyactor.envs import VectorEnv, make_envs
from polyactor.errors import UsageError
from polyactor.learner import Learner, Updater
from polyactor.models.actor_critic import ActorCritic, Precision
from polyactor.optim.flat import State

PLAY = 1 << 20
"""Stream number of evaluations: far from any worker's."""


@dataclass(frozen=True)
class Streams:
    """The independent random streams of one worker, all from the run's seed."""

    env: int
    act: torch.Generator
    learn: torch.Generator

    @classmethod
    def of(cls, seed: int, worker: int, start: int = 0) -> Streams:
        """Of this worker; `start` is the update count a run continues from, so that it does not repeat itself."""
        env, act, learn = np.random.SeedSequence([seed, start, worker]).generate_state(3, np.uint32).tolist()
        return cls(env >> 1, torch.Generator().manual_seed(act), torch.Generator().manual_seed(learn))


def precision(config: Config, *, images: bool) -> Precision:
    """bf16 only for convolutions, and by itself only where the CPU multiplies it natively."""
    if not images:
        return "fp32"
    if config.precision == "auto":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return config.precision


def make_model(config: Config, envs: VectorEnv) -> ActorCritic:
    """A fresh model for these environments; its parameters depend on the seed alone.

    Raises:
        UsageError: the torso cannot read such observations.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            return ActorCritic(
                envs.observation_space,
                envs.action_space,
                config.model,
                precision=precision(config, images=envs.observation_space.dtype == np.uint8),
                normalize_observation=config.normalize.observation,
                normalize_return=config.normalize.reward,
            )
        except (ValueError, RuntimeError) as error:  # torch's own words for an image smaller than a kernel
            why = str(error).splitlines()[0]
            raise UsageError(f"--model.torso {config.model.torso} does not fit: {why}") from None


def make_state(config: Config) -> State:
    """θ, running statistics and optimizer statistics before the first update."""
    envs = make_envs(config.env, 1, atari=config.atari)
    try:
        return State.of(make_model(config, envs), config.optimizer, config.workers)
    finally:
        envs.close()


def make_roles(
    config: Config,
    worker: int,
    state: State,
    board: Board,
    *,
    threads: int = 1,
    reading: AbstractContextManager[object] | None = None,
    applying: AbstractContextManager[object] | None = None,
) -> tuple[Actor, Learner, Updater]:
    """One worker's three roles on a shared state and board.

    Args:
        threads: of the environments, where those can use several.
        reading: held while the snapshot of θ is copied.
        applying: held while θ changes.
    """
    config = config.for_worker(worker)
    streams = Streams.of(config.seed, worker, board.version)
    envs = make_envs(
        config.env, config.envs, atari=config.atari, max_episode_steps=config.max_episode_steps, threads=threads
    )
    model = make_model(config, envs)
    learner = Learner(
        config.algorithm,
        model,
        state,
        board,
        total_steps=config.steps,
        clip_reward=config.normalize.clip_reward,
        generator=streams.learn,
        reading=reading,
    )
    actor = Actor(
        envs,
        model,
        length=config.rollout,
        seed=streams.env,
        generator=streams.act,
        gamma=float(getattr(config.algorithm, "gamma", 0.99)),
        on_game=lambda score, length: board.game(worker, score, length),
    )
    updater = Updater(state, config.optimizer, board, worker=worker, total_steps=config.steps, applying=applying)
    return actor, learner, updater
