"""Each worker in a process of this machine, or in a thread; what the scheme keeps for the run itself plays here."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import cloudpickle

from polyactor.agent.parts import Parts
from polyactor.optim.flat import State
from polyactor.shared.counters import Board, Counter, nothing
from polyactor.shared.timing import Part, Watch
from polyactor.system import failpoints
from polyactor.system.machine import shared_memory, torch_threads
from polyactor.transport.processes import Crew
from polyactor.transport.supervisor import Supervisor
from polyactor.transport.threads import Threads
from polyactor.transport.watchdog import Tell, untold

LOOK_EVERY = 0.05
"""Seconds between two looks for a worker that failed."""
DEAF = 0.2
"""Seconds a role waits at a bell before it looks by itself."""


def play(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    """Start the workers, play the run's own role, stop them in the end.

    Args:
        parts: of the run.
        tell: of workers that start, are lost and are replaced.
    """
    config, state, board = parts.config, parts.state, parts.board
    with ExitStack() as stack:
        with shared_memory():
            cast = stack.enter_context(config.scheme.cast(parts))
            state.share_()
            board.share_()
        for worker in range(cast.workers):
            board.pulse.begin(worker)
            board.leave(worker)  # until it enters
        # cloudpickle, because an environment or algorithm may be defined in the user's own script.
        part = (cast.work, config, parts.spec)
        given = (part if cast.threads else cloudpickle.dumps(part), state, board, *cast.shared)
        crew = (Threads if cast.threads else Crew)(perform, cast.workers, given)
        stack.callback(crew.stop)
        stack.callback(board.stop)
        supervisor = Supervisor(crew, config, board, cast, tell)
        stack.callback(setattr, board, "meanwhile", nothing)
        board.meanwhile = partial(supervisor.look, 0.0)
        if cast.main is None:
            while not supervisor.look(LOOK_EVERY):
                yield
            return
        looked = time.monotonic()
        with torch_threads(1), closing(cast.main) as main:
            for bell in main:
                if bell is not None:
                    supervisor.look(LOOK_EVERY, bell)
                elif time.monotonic() - looked > LOOK_EVERY:
                    supervisor.look(0.0)
                    looked = time.monotonic()
                yield


def perform(worker: int, part: Any, state: State, board: Board, *shared: Any) -> None:
    """A worker's life; to a process its part comes pickled."""
    work, config, spec = cloudpickle.loads(part) if isinstance(part, bytes) else part
    failpoints.arm(worker, spared=board.starts(worker) > 0)
    with closing(work(worker, Parts(config, spec, state, board), *shared)) as role:
        for turn, bell in enumerate(role):
            if turn == 0:
                board.enter(worker)
            board.pulse.beat(worker)
            if bell is not None:
                watch = Watch(partial(board.spend, worker))
                bell.wait(DEAF)
                watch.lap(Part.WAIT)
            else:
                board.count(worker, Counter.TURNS, 1)
            if not board.proceed(worker):
                break
    board.leave(worker)
