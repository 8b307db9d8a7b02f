"""Actor-learner: actors send rollouts to a learner, which differentiates and applies; actors pull its parameters.

With the V-trace loss this is IMPALA (Espeholt et al. 2018), with the loss of PPO it is APPO, and with the loss of A2C
in lockstep it is A2C over several processes. All actors write into one batch ``[T, B]``, each into columns of its own,
so that rollouts are joined without a copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from polyactor.config import Config, Role, Roles, Scheme
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from polyactor.agent.parts import Parts
    from polyactor.agent.sharing import Sharing
    from polyactor.shared.exchange import Rounds
    from polyactor.shared.locks import SequenceLock
    from polyactor.shared.slot_queue import SlotQueue


@dataclass(frozen=True)
class ActorLearner(Scheme):
    """Actors collect; a learner differentiates and applies."""

    name: ClassVar[str] = "actor-learner"
    learns_on_gpu: ClassVar[bool] = True

    max_lag: Annotated[int | None, Allowed(0)] = None
    """Batches that may be learned from between collecting a batch and learning from it; 0 is lockstep. none: 1 where
    the loss corrects for such a lag, else 0."""
    batch: Annotated[int, Allowed(1)] = 1
    """Rollouts of each actor that make one batch."""
    threads: Annotated[int, Allowed(0)] = 0
    """Threads of the learner; 0 is one, or all cores where the actors wait for the learner (images in lockstep)."""

    def columns(self, config: Config) -> int:
        """Return the number of columns B of a batch, which joins the rollouts of all actors."""
        return config.workers * self.batch * config.envs

    def learners(self, config: Config) -> int:
        """Return 1: a single process differentiates."""
        return 1

    def lag(self, config: Config) -> int:
        """Return the bound on the policy lag, in batches: `max_lag`, or by default what the loss can correct for."""
        return int(config.algorithm.corrects_lag) if self.max_lag is None else self.max_lag

    @contextmanager
    def roles(self, parts: Parts, sharing: Sharing) -> Iterator[Roles]:
        """Give the roles: W actors, and the learner as the main role."""
        shared = sharing.rollouts(self.lag(parts.config) + 1, self.batch)
        yield Roles(parts.config.workers, act, shared, main=learn(parts, *shared), lost=shared.slots.lost)


def act(worker: int, parts: Parts, slots: SlotQueue, rounds: Rounds, lock: SequenceLock) -> Role:
    """Run an actor: pull the newest parameters and write a rollout into the batch, whenever a slot is free."""
    replica, actor = parts.actor(worker, reading=lock.reading)
    with closing(actor):
        slots.arrive(worker)
        while True:
            while (slot := slots.free(worker)) is None:
                yield slots.wake_ups[worker]
            replica.pull()  # θ' ← θ
            actor.collect(replica.version, into=rounds.place(worker, slot))
            slots.put(worker)
            yield None


def learn(parts: Parts, slots: SlotQueue, rounds: Rounds, lock: SequenceLock) -> Role:
    """Run the learner: wait until all actors have filled their columns of a batch, then learn from it."""
    from polyactor.system.machine import torch_threads

    config, counters, scheme = parts.config, parts.counters, parts.config.scheme
    assert isinstance(scheme, ActorLearner)
    idle = parts.state.layout.convolutional and scheme.lag(config) == 0
    threads = scheme.threads or (len(os.sched_getaffinity(0)) if idle else 1)
    replica = parts.replica(device=config.learning_device)
    learner, updater = parts.learner(0, replica), parts.updater(0, applying=lock)
    with torch_threads(threads):
        while counters.steps < config.steps:
            while not ready(parts, slots, rounds, scheme.batch):
                yield slots.main
            replica.pull()
            rollout = rounds.round(slots.next(0))
            for gradients in learner.gradients(rollout):  # dθ
                updater.apply(gradients)  # θ ← θ + Δ(dθ)
            for worker in range(config.workers):
                slots.release(worker, scheme.batch)
            yield None


def ready(parts: Parts, slots: SlotQueue, rounds: Rounds, batch: int) -> bool:
    """Return whether a batch is complete.

    If only lost actors are missing, their columns are filled with blank rollouts, which no loss counts.
    """
    workers = parts.config.workers
    slots.admit()
    missing = [worker for worker in range(workers) if slots.waiting(worker) < batch]
    if len(missing) == workers or not all(slots.away(worker) for worker in missing):
        return not missing
    for worker in missing:
        for _ in range(batch - slots.waiting(worker)):
            rounds.place(worker, slots.latest(worker)).blank_(parts.counters.version)
            slots.put(worker)
    return True
