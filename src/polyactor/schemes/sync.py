"""Synchronous: one process, one batch of environments, no lag. With the A2C loss this is A2C."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from polyactor.config import Config, Scheme
from polyactor.types import Allowed

if TYPE_CHECKING:
    from polyactor.board import Board
    from polyactor.optim.flat import State


@dataclass(frozen=True)
class Sync(Scheme):
    """One process holds θ, collects, differentiates and applies."""

    name: ClassVar[str] = "sync"
    single: ClassVar[bool] = True

    threads: Annotated[int, Allowed(0)] = 0
    """Threads of torch and of the emulators; 0 is all cores for images and 1 for vectors."""

    def run(self, config: Config, state: State, board: Board) -> Generator[None, None, None]:
        """A turn of the loop per yield."""
        import torch  # here, so that reading flags needs no torch

        from polyactor.build import make_roles

        threads = self.threads or (len(os.sched_getaffinity(0)) if state.layout.convolutional else 1)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            actor, learner, updater = make_roles(config, 0, state, board, threads=threads)
            while board.steps < config.steps:
                learner.pull()  # θ' ← θ
                rollout = actor.collect(learner.version)  # T steps in B environments with π(·; θ')
                for gradients in learner.gradients(rollout):  # dθ'
                    updater.apply(gradients)  # θ ← θ + Δ(dθ')
                yield
        finally:
            torch.set_num_threads(before)

    def paused(self, board: Board) -> AbstractContextManager[bool]:
        """Nothing runs while the caller does."""
        return nullcontext(True)
