"""From a config to the parts a scheme places."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import torch

from polyactor.agent.actor import Actor, row_of
from polyactor.agent.learner import Learner
from polyactor.agent.replay_buffer import ReplayBuffer
from polyactor.agent.replica import Replica
from polyactor.agent.resumables import Resumables
from polyactor.agent.streams import Streams
from polyactor.agent.updater import Updater
from polyactor.config import Config
from polyactor.data import Rollout
from polyactor.envs import EnvSpec, make_envs
from polyactor.errors import OutOfResources, UsageError
from polyactor.models.actor_critic import ActorCritic, Precision
from polyactor.models.running_stats import blank_moments
from polyactor.optim.flat import State
from polyactor.shared.counters import SharedCounters
from polyactor.shared.gradient_slots import GradientSlot
from polyactor.shared.heartbeat import ALL
from polyactor.shared.locks import Reading, once

T = TypeVar("T", Rollout, GradientSlot)


REPLAY = "replay"
"""Folder of the rings in a run directory."""


LEAST_ROLLOUTS = 4
"""A ring of fewer could not be sampled."""


def precision(config: Config, *, images: bool) -> Precision:
    """bf16 only for convolutions, and by itself only where the CPU multiplies it natively."""
    if not images or config.algorithm.moves:
        return "fp32"
    if config.precision == "auto":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return config.precision


def make_model(config: Config, spec: EnvSpec) -> ActorCritic:
    """A fresh model for such environments; its parameters depend on the seed alone.

    Raises:
        UsageError: the torso cannot read such observations.
    """
    with torch.random.fork_rng(devices=[]):  # asking a GPU for its stream would open it in every process
        torch.manual_seed(config.seed)
        try:
            return ActorCritic(
                spec.observation_space,
                spec.action_space,
                config.model,
                precision=precision(config, images=spec.bytes),
                normalize_observation=config.normalize.observation,
                normalize_return=config.normalize.reward,
                value_head=config.algorithm.outputs[1],
                averaged=config.algorithm.averaging is not None,
            )
        except (ValueError, RuntimeError) as error:  # torch's own words for an image smaller than a kernel
            why = str(error).splitlines()[0]
            what = "the algorithm" if "Q(x" in why else f"--model.torso {config.model.torso}"
            raise UsageError(f"{what} does not fit: {why}") from None


def make_state(config: Config, spec: EnvSpec) -> State:
    """θ, running statistics and optimizer statistics before the first update.

    Raises:
        UsageError: the model does not fit the environment, or is not one to compile.
        OutOfResources: what will be replayed does not fit the disk.
    """
    model = make_model(config, spec)
    config.algorithm.suits(continuous=spec.continuous)
    _refuse_small_disk(config, spec, model)
    state = State.of(model, config.optimizer, config.workers)
    if config.compile and state.layout.convolutional:
        raise UsageError("--compile is not allowed with a CNN: convolutions would be no faster; it is for vectors")
    return state


@dataclass(frozen=True)
class Parts:
    """Makes the parts that a scheme places, from one config, on one state.

    Attributes:
        config: of the run.
        spec: of its environments.
        state: θ, running statistics and optimizer statistics; workers share its memory.
        counters: the counters of all workers; they share its memory, too.
        resumables: what a checkpoint holds besides, so that a run goes on to the bit.
    """

    config: Config
    spec: EnvSpec
    state: State
    counters: SharedCounters
    resumables: Resumables = field(default_factory=Resumables)

    @classmethod
    def fresh(cls, config: Config, spec: EnvSpec) -> Self:
        """The parts of a run that begins.

        Raises:
            UsageError, OutOfResources: as `make_state`.
        """
        return cls(config, spec, make_state(config, spec), SharedCounters(config.workers, config.algorithm.metrics))

    def actor(self, worker: int, *, threads: int = 1, reading: Reading = once) -> tuple[Replica, Actor]:
        """A worker's actor in environments of its own, and the replica it acts with.

        Args:
            threads: of the environments, where those can use several.
            reading: gives a loop in whose body θ is copied.
        """
        config, counters = self.config, self.counters
        streams = self._streams(worker)
        heartbeat = counters.heartbeats.heartbeat(worker)
        with ExitStack() as made:  # where the rest of an actor cannot be made, its environments are closed
            heartbeat.asked(ALL, None)
            envs = make_envs(
                config.env,
                config.envs,
                atari=config.atari,
                max_episode_steps=config.max_episode_steps,
                threads=threads,
                saved=config.exact_resume,
                listener=heartbeat,
            )
            made.callback(envs.close)
            heartbeat.answered()
            replica = self.replica(reading=reading)
            actor = Actor(
                envs,
                replica.model,
                length=config.rollout,
                seed=streams.env,
                generator=streams.act,
                gamma=config.for_worker(worker).algorithm.gamma,
                differentiated=not config.algorithm.reuses,
                needs=config.algorithm.needs,
                on_game=partial(counters.game, worker),
                heartbeat=heartbeat,
                on_lost=partial(counters.env_error, worker),
                spend=partial(counters.spend, worker),
            )
            made.pop_all()
        return replica, actor

    def replica(self, *, reading: Reading = once, device: str = "cpu") -> Replica:
        """A model on a private copy of the state.

        Args:
            reading: gives a loop in whose body the copy is made.
            device: where the copy lives.
        """
        return Replica(make_model(self.config, self.spec), self.state, self.counters, reading=reading, device=device)

    def learner(self, worker: int, replica: Replica) -> Learner:
        """A worker's learner, with this worker's own values, at the parameters of a replica."""
        config = self.config
        return Learner(
            config.for_worker(worker).algorithm,
            replica,
            total_steps=config.steps,
            clip_reward=config.normalize.clip_reward,
            generator=self._streams(worker, replica.device).learn,
            replay=self.replay(worker, replica.model) if config.algorithm.remembers else None,
            compile=config.compile,
            spend=partial(self.counters.spend, worker),
        )

    def updater(self, worker: int, *, applying: AbstractContextManager[object] | None = None) -> Updater:
        """A worker's updater, with this worker's own values.

        Args:
            applying: held while θ changes.
        """
        own = self.config.for_worker(worker)
        return Updater(
            self.state,
            own.optimizer,
            self.counters,
            worker=worker,
            total_steps=self.config.steps,
            averaging=own.algorithm.averaging,
            applying=applying,
        )

    def replay(self, worker: int, model: ActorCritic) -> ReplayBuffer:
        """A learner's equal part of the steps that are replayed, in the run directory where there is one."""
        like, rollouts, stack = _ring_of(self.config, self.spec, model)
        folder = None if self.config.out is None else Path(self.config.out) / REPLAY / f"learner-{worker}"
        return ReplayBuffer(like, rollouts, stack=stack, folder=folder)

    def rounds(self, rounds: int, actors: int) -> list[Rollout]:
        """Shared memory for so many rollouts, each joined of those of several actors."""
        config, model = self.config, make_model(self.config, self.spec)
        row = row_of(self.spec, model, config.algorithm.needs)
        sizes = {"t": config.rollout, "b": actors * config.envs, "actors": actors}
        return [_shared(Rollout.blank(row, **sizes)) for _ in range(rounds)]

    def gradient_slots(self, queue: int, accumulate: int) -> list[list[GradientSlot]]:
        """Shared memory for gradients on their way to a server: by worker, by place in its queue.

        Args:
            queue: places of each worker.
            accumulate: rollouts whose gradients are joined in one place.
        """
        running = make_model(self.config, self.spec).running
        shapes = {name: tuple(part.mean.shape) for name, part in running.items()}

        def slot() -> GradientSlot:
            moments = {name: blank_moments(accumulate, shape) for name, shape in shapes.items()}
            return _shared(GradientSlot.blank(self.state.layout.theta, self.counters.names, moments))

        return [[slot() for _ in range(queue)] for _ in range(self.config.workers)]

    def _streams(self, worker: int, device: str = "cpu") -> Streams:
        counters = self.counters
        return Streams.of(self.config.seed, worker, counters.version, again=counters.starts(worker), device=device)


def _ring_of(config: Config, spec: EnvSpec, model: ActorCritic) -> tuple[Rollout, int, int]:
    """What each learner's ring is made of: a rollout like those to come, how many of them, and frames of a stack."""
    columns = config.scheme.columns(config)
    rollouts = config.algorithm.remembers // (config.scheme.learners(config) * columns * config.rollout)
    like = Rollout.blank(row_of(spec, model, config.algorithm.needs), t=config.rollout, b=columns)
    return like, max(rollouts, LEAST_ROLLOUTS), spec.stack if model.image else 1


def _refuse_small_disk(config: Config, spec: EnvSpec, model: ActorCritic) -> None:
    """Refuse to replay more than the disk that the run is on has room for."""
    if not config.algorithm.remembers:
        return
    like, rollouts, stack = _ring_of(config, spec, model)
    needed = config.scheme.learners(config) * ReplayBuffer.size(like, rollouts, stack=stack)
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


def _shared(memory: T) -> T:
    for tensor in memory.tensors():
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return memory
