"""Hogwild: every worker collects, differentiates and applies, on θ and optimizer statistics in shared memory.

With the A2C loss this is A3C (Mnih et al. 2016, Algorithm S3). Without a lock the updates are those of Hogwild!
(Niu et al. 2011): a worker may read θ while another one writes it, and one of two colliding writes may be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from polyactor.config import Config, Role, Roles, Scheme

if TYPE_CHECKING:
    from polyactor.agent.parts import Parts
    from polyactor.agent.sharing import Sharing

Lock = Literal["none", "update", "both"]


@dataclass(frozen=True)
class Hogwild(Scheme):
    """Every worker collects, differentiates and applies, in place, on θ in shared memory."""

    name: ClassVar[str] = "hogwild"
    per_worker: ClassVar[bool] = True
    applies_apart: ClassVar[bool] = True

    lock: Lock = "none"
    """none: no lock; update: one worker at a time applies; both: meanwhile no other worker reads θ either."""
    workers_as: Literal["process", "thread"] = "process"
    """thread: workers share this process and its interpreter; slower, but nothing has to be pickled."""

    @property
    def in_threads(self) -> bool:
        """Return whether workers are threads."""
        return self.workers_as == "thread"

    def alone(self, config: Config) -> bool:
        """Return whether there is only one worker, so that no other one moves θ."""
        return config.workers == 1

    @contextmanager
    def roles(self, parts: Parts, sharing: Sharing) -> Iterator[Roles]:
        """Give the roles: W workers and no main role."""
        with sharing.lock_file() as path:
            yield Roles(parts.config.workers, work, (path,), threads=self.in_threads)


def work(worker: int, parts: Parts, lock_path: str) -> Role:
    """Run a worker: Algorithm S3 of Mnih et al. (2016), line for line."""
    from polyactor.shared.locks import FileLock, once

    config, counters = parts.config, parts.counters
    assert isinstance(config.scheme, Hogwild)
    lock = config.scheme.lock
    reading = FileLock(lock_path, shared=True).reading if lock == "both" else once
    applying = FileLock(lock_path) if lock != "none" else None
    replica, actor = parts.actor(worker, reading=reading)
    with closing(actor):
        learner, updater = parts.learner(worker, replica), parts.updater(worker, applying=applying)
        while counters.steps < config.steps:
            replica.pull()  # θ' ← θ
            rollout = actor.collect(replica.version)  # T steps in B environments with π(·; θ')
            for gradients in learner.gradients(rollout):  # dθ'
                yield None
                updater.apply(gradients)  # θ ← θ + Δ(dθ'), in place
