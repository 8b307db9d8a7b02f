"""Where the roles of a scheme play: each worker in a process or thread of its own, or all taking turns in this one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

from polyactor.board import Board
from polyactor.config import Config
from polyactor.machine import shared_memory
from polyactor.optim.flat import State
from polyactor.transport import inline, local
from polyactor.transport.pausing import paused, still
from polyactor.transport.watchdog import Tell, untold

PLAYS = {"local": local.play, "inline": inline.play}
"""How each transport plays; `polyactor.config.TRANSPORTS` has what it can."""


def run(config: Config, state: State, board: Board, tell: Tell = untold) -> Generator[None, None, None]:
    """Train; yields whenever the caller may look at the board and the state, or stop by closing it.

    Args:
        config, state, board: of the run.
        tell: of workers that start, are lost and are replaced.
    """
    with ExitStack() as stack:
        with shared_memory():
            cast = stack.enter_context(config.scheme.cast(config, state, board))
        play = PLAYS[config.transport] if cast.workers else inline.play
        yield from play(cast, config, state, board, tell)


__all__ = ["PLAYS", "paused", "run", "still"]
