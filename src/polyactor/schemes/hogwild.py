"""Hogwild: θ and the optimizer's statistics in shared memory; every worker collects, differentiates and applies.

With the A2C loss this is A3C (Mnih et al. 2016, Algorithm S3); without a lock the updates are those of Hogwild!
(Niu et al. 2011): a worker may read θ while another writes it, and a colliding write may be lost.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from polyactor.config import Config, Scheme

if TYPE_CHECKING:
    from polyactor.board import Board
    from polyactor.optim.flat import State

Lock = Literal["none", "update", "both"]


@dataclass(frozen=True)
class Hogwild(Scheme):
    """θ in shared memory; every worker collects, differentiates and applies in place."""

    name: ClassVar[str] = "hogwild"
    single: ClassVar[bool] = False

    lock: Lock = "none"
    """none: no lock; update: applying is exclusive; both: reading the snapshot is exclusive too."""

    def run(self, config: Config, state: State, board: Board) -> Generator[None, None, None]:
        """Starts the workers and yields while they train."""
        import cloudpickle  # here, so that reading flags needs no torch

        from polyactor.processes import Crew

        state.share_()
        board.share_()
        with tempfile.NamedTemporaryFile(prefix="polyactor-lock-") as file:
            # cloudpickle, because an environment or algorithm may be defined in the user's own script.
            crew = Crew(work, config.workers, (cloudpickle.dumps(config), state, board, file.name))
            try:
                while not crew.wait(timeout=0.05):
                    yield
            finally:
                board.stop()
                crew.stop()

    @contextmanager
    def paused(self, board: Board) -> Iterator[bool]:
        """Workers wait between two updates."""
        try:
            yield board.pause()
        finally:
            board.resume()


def work(worker: int, pickled: bytes, state: State, board: Board, lock_file: str) -> None:
    """A worker's life, line for line Algorithm S3."""
    import cloudpickle

    from polyactor.build import make_roles

    config: Config = cloudpickle.loads(pickled)
    assert isinstance(config.scheme, Hogwild)
    lock = config.scheme.lock
    actor, learner, updater = make_roles(
        config,
        worker,
        state,
        board,
        reading=FileLock(lock_file) if lock == "both" else nullcontext(),
        applying=FileLock(lock_file) if lock != "none" else nullcontext(),
    )
    while board.proceed(worker) and board.steps < config.steps:
        learner.pull()  # θ' ← θ
        rollout = actor.collect(learner.version)  # T steps in B environments with π(·; θ')
        for gradients in learner.gradients(rollout):  # dθ'
            updater.apply(gradients)  # θ ← θ + Δ(dθ'), in place
    board.leave(worker)


class FileLock(AbstractContextManager[None]):
    """Exclusive among processes; the kernel releases it when its holder dies, however that happens."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR)

    def __enter__(self) -> None:
        import fcntl

        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        import fcntl

        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
