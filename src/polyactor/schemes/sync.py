"""Synchronous: one process collects, differentiates and applies in turn, without lag. With the A2C loss this is A2C."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from polyactor.config import Role, Roles, Scheme
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from polyactor.agent.parts import Parts
    from polyactor.agent.sharing import Sharing


@dataclass(frozen=True)
class Sync(Scheme):
    """One process holds θ, collects, differentiates and applies."""

    name: ClassVar[str] = "sync"
    single: ClassVar[bool] = True
    learns_on_gpu: ClassVar[bool] = True

    threads: Annotated[int, Allowed(0)] = 0
    """Threads of torch and of the emulators; 0 is all cores for images and 1 for vectors."""

    @contextmanager
    def roles(self, parts: Parts, sharing: Sharing) -> Iterator[Roles]:
        """Give the roles: no workers, and the training loop as the main role."""
        yield Roles(main=learn(parts, self.threads))


def learn(parts: Parts, threads: int) -> Role:
    """Run the training loop: collect a rollout, then differentiate and apply each batch of it.

    Args:
        parts: the parts of the run.
        threads: threads of torch and of the emulators; 0 is all cores for CNNs and 1 otherwise.
    """
    from polyactor.system.deadline import Halted
    from polyactor.system.machine import torch_threads

    config, counters = parts.config, parts.counters
    threads = threads or (len(os.sched_getaffinity(0)) if parts.state.layout.convolutional else 1)
    with torch_threads(threads):
        replica, actor = parts.actor(0, threads=threads)
        with closing(actor):
            device = config.learning_device
            learning = replica if device == "cpu" else parts.replica(device=device)
            learner, updater = parts.learner(0, learning), parts.updater(0)
            if config.exact_resume:
                parts.resumables.add("actor", actor)
                parts.resumables.add("learner", learner)
            while counters.steps < config.steps:
                for each in {replica, learning}:
                    each.pull()  # θ' ← θ
                try:
                    rollout = actor.collect(replica.version)  # T steps in B environments with π(·; θ')
                except Halted:  # the run is saved before its environments are closed, which may take long
                    yield None
                    return
                for gradients in learner.gradients(rollout):  # dθ'
                    updater.apply(gradients)  # θ ← θ + Δ(dθ')
                yield None
