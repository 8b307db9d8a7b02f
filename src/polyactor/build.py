"""From a config to the parts a scheme places."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from polyactor.actor import Actor, row_of
from polyactor.board import Board
from polyactor.channel import Reading, once
from polyactor.config import Config
from polyactor.envs import EnvSpec, VectorEnv, is_atari, make_envs
from polyactor.errors import OutOfResources, UsageError
from polyactor.learner import Learner, Replica
from polyactor.models.actor_critic import ActorCritic, Precision
from polyactor.models.normalizer import blank_moments
from polyactor.optim.flat import State
from polyactor.parcel import Parcel
from polyactor.pulse import ALL
from polyactor.replay import Ring
from polyactor.types import Rollout
from polyactor.updater import Updater

T = TypeVar("T", Rollout, Parcel)

REPLAY = "replay"
"""Folder of the rings in a run directory."""
LEAST_ROLLOUTS = 4
"""A ring of fewer could not be sampled."""
PLAY = 1 << 20
"""Stream number of evaluations: far from any worker's."""


@dataclass(frozen=True)
class Streams:
    """The independent random streams of one worker, all from the run's seed."""

    env: int
    act: torch.Generator
    learn: torch.Generator

    @classmethod
    def of(cls, seed: int, worker: int, start: int = 0, *, again: int = 0, device: str = "cpu") -> Streams:
        """Of this worker, so that it does not repeat itself.

        Args:
            seed: of the run.
            worker: whose.
            start: the update count it continues from.
            again: how many have played this worker before.
            device: of what learning draws from.
        """
        own = np.random.SeedSequence([seed, start, worker, again])
        env, act, learn = own.generate_state(3, np.uint32).tolist()
        return cls(env >> 1, torch.Generator().manual_seed(act), torch.Generator(device).manual_seed(learn))


def precision(config: Config, *, images: bool) -> Precision:
    """bf16 only for convolutions, and by itself only where the CPU multiplies it natively."""
    if not images or config.algorithm.moves:
        return "fp32"
    if config.precision == "auto":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return config.precision


def make_model(config: Config, envs: VectorEnv) -> ActorCritic:
    """A fresh model for these environments; its parameters depend on the seed alone.

    Raises:
        UsageError: the torso cannot read such observations.
    """
    with torch.random.fork_rng(devices=[]):  # asking a GPU for its stream would open it in every process
        torch.manual_seed(config.seed)
        try:
            return ActorCritic(
                envs.observation_space,
                envs.action_space,
                config.model,
                precision=precision(config, images=envs.observation_space.dtype == np.uint8),
                normalize_observation=config.normalize.observation,
                normalize_return=config.normalize.reward,
                critic=config.algorithm.outputs[1],
                averaged=config.algorithm.averaging is not None,
            )
        except (ValueError, RuntimeError) as error:  # torch's own words for an image smaller than a kernel
            why = str(error).splitlines()[0]
            what = "the algorithm" if "Q(x" in why else f"--model.torso {config.model.torso}"
            raise UsageError(f"{what} does not fit: {why}") from None


def make_state(config: Config) -> State:
    """θ, running statistics and optimizer statistics before the first update.

    Raises:
        UsageError: the model does not fit the environment, or is not one to compile.
    """
    with closing(make_envs(config.env, 1, atari=config.atari)) as envs:
        model = make_model(config, envs)
        config.algorithm.suits(continuous=model.actions.dims > 0)
        check_room(config, envs, model)
        state = State.of(model, config.optimizer, config.workers)
    if config.compile and state.layout.convolutional:
        raise UsageError("--compile is not allowed with a CNN: convolutions would be no faster; it is for vectors")
    return state


def make_replica(
    config: Config,
    state: State,
    board: Board,
    *,
    envs: VectorEnv | None = None,
    reading: Reading = once,
    device: str = "cpu",
) -> Replica:
    """A model on a private copy of the state.

    Args:
        envs: what it acts in; by default made for a moment, to know their spaces.
        reading: gives a loop in whose body the copy is made.
        device: where the copy lives.
    """
    with nullcontext(envs) if envs else closing(make_envs(config.env, 1, atari=config.atari)) as spaces:
        return Replica(make_model(config, spaces), state, board, reading=reading, device=device)


def make_actor(
    config: Config,
    worker: int,
    state: State,
    board: Board,
    *,
    threads: int = 1,
    reading: Reading = once,
) -> tuple[Replica, Actor]:
    """Who collects, and the replica it acts with.

    Args:
        threads: of the environments, where those can use several.
        reading: gives a loop in whose body θ is copied.
    """
    streams = Streams.of(config.seed, worker, board.version, again=board.starts(worker))
    line = board.pulse.line(worker)
    line.asked(ALL, None)
    envs = make_envs(
        config.env,
        config.envs,
        atari=config.atari,
        max_episode_steps=config.max_episode_steps,
        threads=threads,
        saved=config.exact_resume,
        listener=line,
    )
    line.answered()
    replica = make_replica(config, state, board, envs=envs, reading=reading)
    actor = Actor(
        envs,
        replica.model,
        length=config.rollout,
        seed=streams.env,
        generator=streams.act,
        gamma=float(getattr(config.for_worker(worker).algorithm, "gamma", 0.99)),
        differentiated=not config.algorithm.reuses,
        needs=config.algorithm.needs,
        on_game=partial(board.game, worker),
        line=line,
        on_lost=partial(board.env_error, worker),
        spend=partial(board.spend, worker),
    )
    return replica, actor


def make_learner(config: Config, worker: int, replica: Replica) -> Learner:
    """Who differentiates, with this worker's own values."""
    board = replica.board
    return Learner(
        config.for_worker(worker).algorithm,
        replica,
        total_steps=config.steps,
        clip_reward=config.normalize.clip_reward,
        generator=Streams.of(
            config.seed, worker, board.version, again=board.starts(worker), device=replica.device
        ).learn,
        replay=make_ring(config, worker, replica.model) if config.algorithm.remembers else None,
        compile=config.compile,
        spend=partial(board.spend, worker),
    )


def make_ring(config: Config, worker: int, model: ActorCritic) -> Ring:
    """Memory for an equal part of the steps that the algorithm replays, in the run directory where there is one."""
    with closing(make_envs(config.env, 1, atari=config.atari)) as envs:
        like, rollouts, stack = ring_of(config, envs, model)
    folder = None if config.out is None else Path(config.out) / REPLAY / f"learner-{worker}"
    return Ring(like, rollouts, stack=stack, folder=folder)


def ring_of(config: Config, envs: VectorEnv, model: ActorCritic) -> tuple[Rollout, int, int]:
    """What each learner's ring is made of: a rollout like those to come, how many of them, and frames of a stack."""
    columns = config.scheme.columns(config)
    rollouts = config.algorithm.remembers // (config.scheme.learners(config) * columns * config.rollout)
    stacked = model.image and is_atari(config.env)
    like = Rollout.blank(row_of(EnvSpec.of(envs), model, config.algorithm.needs), t=config.rollout, b=columns)
    return like, max(rollouts, LEAST_ROLLOUTS), config.atari.stack if stacked else 1


def check_room(config: Config, envs: VectorEnv, model: ActorCritic) -> None:
    """Whether what will be replayed fits the disk that the run is on.

    Raises:
        OutOfResources: it does not.
    """
    if not config.algorithm.remembers:
        return
    like, rollouts, stack = ring_of(config, envs, model)
    needed = config.scheme.learners(config) * Ring.size(like, rollouts, stack=stack)
    directory = Path(config.out or ".").absolute()
    there = sum(each.stat().st_size for each in (directory / REPLAY).rglob("*.bin"))
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if needed - there > free:
        raise OutOfResources(
            f"--algorithm.replay-capacity {config.algorithm.remembers} needs {needed / 1e9:,.1f} GB on the disk of "
            f"{directory}, where {free / 1e9:,.1f} GB are free"
        )


def make_updater(
    config: Config,
    worker: int,
    state: State,
    board: Board,
    *,
    applying: AbstractContextManager[object] | None = None,
) -> Updater:
    """Who applies, with this worker's own values.

    Args:
        applying: held while θ changes.
    """
    own = config.for_worker(worker)
    return Updater(
        state,
        own.optimizer,
        board,
        worker=worker,
        total_steps=config.steps,
        averaging=own.algorithm.averaging,
        applying=applying,
    )


def make_rounds(config: Config, rounds: int, actors: int) -> list[Rollout]:
    """Shared memory for so many joined rollouts."""
    with closing(make_envs(config.env, 1, atari=config.atari)) as envs:
        model = make_model(config, envs)
        row = row_of(EnvSpec.of(envs), model, config.algorithm.needs)
    sizes = {"t": config.rollout, "b": actors * config.envs, "actors": actors}
    return [_shared(Rollout.blank(row, **sizes)) for _ in range(rounds)]


def make_parcels(config: Config, state: State, board: Board, queue: int, accumulate: int) -> list[list[Parcel]]:
    """Shared memory for gradients on their way to a server: by worker, by place in its queue."""
    with closing(make_envs(config.env, 1, atari=config.atari)) as envs:
        shapes = {name: tuple(part.mean.shape) for name, part in make_model(config, envs).running.items()}

    def parcel() -> Parcel:
        moments = {name: blank_moments(accumulate, shape) for name, shape in shapes.items()}
        return _shared(Parcel.blank(state.layout.theta, board.names, moments))

    return [[parcel() for _ in range(queue)] for _ in range(config.workers)]


def _shared(memory: T) -> T:
    for tensor in memory.tensors():
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return memory
