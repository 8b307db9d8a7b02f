"""Makes the actors, learners, updaters and replicas of a run from its config."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import torch

from polyactor.agent.actor import Actor
from polyactor.agent.fisher import Observer, layers_of
from polyactor.agent.learner import Learner
from polyactor.agent.replay_buffer import ReplayBuffer, overwritten
from polyactor.agent.replica import Replica
from polyactor.agent.resumables import Resumables
from polyactor.agent.rollout_row import row_of
from polyactor.agent.streams import Drawing, Streams
from polyactor.agent.updater import Updater
from polyactor.config import Config
from polyactor.data import Rollout
from polyactor.envs import EnvSpec, make_envs
from polyactor.errors import OutOfResources, UsageError
from polyactor.models.actor_critic import ActorCritic, Precision
from polyactor.models.noisy import MEAN_SIGMA
from polyactor.models.whole_network import WholeNetwork
from polyactor.optim.flat import Layout, State
from polyactor.shared.counters import SharedCounters, never
from polyactor.shared.heartbeat import ALL, Call
from polyactor.shared.locks import Reading, once
from polyactor.system.process_state import attention, kept_switches

REPLAY = "replay"
"""The folder of a run directory that holds the replay buffers."""
LEAST_ROLLOUTS = 2
"""The fewest rollouts that can be sampled of a full replay buffer."""


def precision(config: Config, *, images: bool) -> Precision:
    """Return the precision of the torso: bf16 is for convolutions only, and `auto` takes it if the CPU has AVX512-BF16.

    Args:
        config: the config of the run.
        images: whether observations are images.
    """
    rounded = config.algorithm.moves or config.optimizer.factored or config.model.torso_noise
    if not images or rounded or config.model.own.keys() & {"torso", "network"}:
        return "fp32"
    if config.precision == "auto":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return config.precision


def make_model(config: Config, spec: EnvSpec) -> ActorCritic:
    """Return a new model for environments of this spec; the seed alone decides its initial parameters.

    Raises:
        UsageError: the torso cannot read these observations, or the critic cannot take these actions.
        OutOfResources: the model does not fit the memory.
    """
    with Drawing(config.seed):
        try:
            return (ActorCritic if config.model.network is None else WholeNetwork)(
                spec.observation_space,
                spec.action_space,
                config.model,
                precision=precision(config, images=spec.bytes),
                normalize_observation=config.normalize.observation,
                normalize_return=config.normalize.reward,
                value_head=config.algorithm.outputs[1],
                averaged=config.algorithm.averaging is not None,
            )
        except (ValueError, RuntimeError) as error:  # torch raises these for an image smaller than a kernel
            why = str(error).splitlines()[0]
            if "allocate memory" in why:
                raise OutOfResources(f"the model does not fit the memory of this machine: {why}") from None
            what = "the algorithm" if "Q(x" in why else f"--model.torso {config.model.torso}"
            raise UsageError(f"{what} does not fit: {why}") from None


def make_state(config: Config, spec: EnvSpec) -> State:
    """Return θ, the running statistics and the optimizer's statistics as they are before the first update.

    Raises:
        UsageError: the model does not fit the environment, or `--compile` is set for a CNN.
        OutOfResources: the replay buffers do not fit the disk.
    """
    model = make_model(config, spec)
    config.algorithm.suits(continuous=spec.continuous, parts=len(model.actions.sizes))
    if config.model.network is not None:  # of which it is known only now whether it remembers
        memory, alone = bool(model.initial_state(1)), config.scheme.alone(config)
        config.algorithm.fits(config.scheme.columns(config), memory=memory, alone=alone)
    _refuse_small_disk(config, spec, model)
    layers = layers_of(model, spec) if config.optimizer.factored else ()
    state = State.of(model, config.optimizer, config.workers, layers)
    if config.compile and state.layout.convolutional:
        raise UsageError("--compile is not allowed with a CNN: convolutions would be no faster; it is for vectors")
    return state


@dataclass(frozen=True)
class Parts:
    """Makes the parts that a scheme distributes over processes, all from one config and on one state.

    Attributes:
        config: the config of the run.
        spec: the spaces of the environments.
        state: θ, the running statistics and the optimizer's statistics, in memory that all workers share.
        counters: the counters of all workers, also in shared memory.
        resumables: the parts whose state a checkpoint adds for an exact resume.
    """

    config: Config
    spec: EnvSpec
    state: State
    counters: SharedCounters
    resumables: Resumables = field(default_factory=Resumables)

    @classmethod
    @torch.inference_mode(False)  # as tensors that can be learned, whatever the caller has set
    def fresh(cls, config: Config, spec: EnvSpec) -> Self:
        """Return the parts of a new run, with a new state and counters at zero.

        Raises:
            UsageError, OutOfResources: as `make_state` does.
        """
        return cls(config, spec, make_state(config, spec), SharedCounters(config.workers, _metrics(config)))

    @classmethod
    def of_worker(cls, config: Config, spec: EnvSpec) -> Self:
        """Return the parts of a worker on another machine: a state and counters of its own, with nothing in them.

        The optimizer's statistics are those of the process that applies, so there are none.
        """
        layout = Layout.of(make_model(config, spec))
        return cls(
            config,
            spec,
            State(layout, torch.zeros(layout.size), ({},)),
            SharedCounters(config.workers, _metrics(config)),
        )

    def actor(self, worker: int, *, threads: int = 1, reading: Reading = once) -> tuple[Replica, Actor]:
        """Make a worker's environments and return the replica and the actor that acts in them with it.

        Args:
            worker: the number of the worker.
            threads: threads that step the environments, for those that can use several.
            reading: the lock under which the replica copies θ.
        """
        config, counters = self.config, self.counters
        streams = self._streams(worker)
        heartbeat = counters.heartbeats.heartbeat(worker)
        with ExitStack() as made:  # closes the environments if the rest of the actor cannot be made
            heartbeat.attend = attention(never if config.exact_resume else counters.stopped())
            heartbeat.asked(ALL, None, Call.CONSTRUCTOR)
            with kept_switches():
                envs = make_envs(
                    config.environment,
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
        """Return a model with a private copy of the state.

        Args:
            reading: the lock under which the copy is made.
            device: the device of the copy.
        """
        return Replica(make_model(self.config, self.spec), self.state, self.counters, reading=reading, device=device)

    def learner(self, worker: int, replica: Replica) -> Learner:
        """Return a worker's learner, with the `per_worker` values of that worker, at the parameters of a replica."""
        config = self.config
        return Learner(
            config.for_worker(worker).algorithm,
            replica,
            total_steps=config.steps,
            clip_reward=config.normalize.clip_reward,
            generator=self._streams(worker, replica.device).learn,
            replay=self.replay(worker, replica.model) if config.algorithm.remembers else None,
            compile=config.compile,
            observer=Observer.of(replica.model, self.state, config.optimizer, self.counters.changes),
            spend=partial(self.counters.spend, worker),
        )

    def updater(self, worker: int, *, applying: AbstractContextManager[object] | None = None) -> Updater:
        """Return a worker's updater, with the `per_worker` values of that worker.

        Args:
            worker: the number of the worker.
            applying: a lock that is held while θ changes.
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
        """Return a learner's replay buffer, an equal share of the capacity; its files lie in the run directory."""
        like, rollouts, stack = _replay_layout(self.config, self.spec, model)
        folder = None if self.config.out is None else Path(self.config.out) / REPLAY / f"learner-{worker}"
        return ReplayBuffer(like, rollouts, stack=stack, folder=folder)

    def _streams(self, worker: int, device: str = "cpu") -> Streams:
        counters = self.counters
        return Streams.of(self.config.seed, worker, counters.version, again=counters.starts(worker), device=device)


def _metrics(config: Config) -> tuple[str, ...]:
    """Return the names of the metrics that a run has besides those of every run."""
    return (*config.algorithm.metrics, *[MEAN_SIGMA] * (config.model.noisy != "none"))


def _replay_layout(config: Config, spec: EnvSpec, model: ActorCritic) -> tuple[Rollout, int, int]:
    """Return a blank rollout, the number of rollouts and the frames per stack of each learner's replay buffer."""
    columns = config.scheme.columns(config)
    rollouts = config.algorithm.remembers // (config.scheme.learners(config) * columns * config.rollout)
    like = Rollout.blank(row_of(spec, model, config.algorithm.needs), t=config.rollout, b=columns)
    stack = spec.stack if model.image else 1
    return like, max(rollouts, LEAST_ROLLOUTS + overwritten(config.rollout, stack)), stack


def _refuse_small_disk(config: Config, spec: EnvSpec, model: ActorCritic) -> None:
    """Raise OutOfResources if the replay buffers need more disk space than is free in the run directory."""
    if not config.algorithm.remembers:
        return
    like, rollouts, stack = _replay_layout(config, spec, model)
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
