"""Where the roles of a scheme play: each worker in a process or thread of its own, or all taking turns in this one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, nullcontext

from polyactor.board import Board
from polyactor.config import Config
from polyactor.machine import shared_memory
from polyactor.optim.flat import State
from polyactor.transport import inline, local
from polyactor.transport.watchdog import Tell, untold

TRANSPORTS = {"local": local.play, "inline": inline.play}
HEED_WITHIN = 0.75
"""Seconds."""


def run(config: Config, state: State, board: Board, tell: Tell = untold) -> Generator[None, None, None]:
    """Train; yields whenever the caller may look at the board and the state, or stop by closing it.

    Args:
        config, state, board: of the run.
        tell: of workers that start, are lost and are replaced.
    """
    with ExitStack() as stack:
        with shared_memory():
            cast = stack.enter_context(config.scheme.cast(config, state, board))
        play = TRANSPORTS[config.transport if cast.workers else "inline"]
        yield from play(cast, config, state, board, tell)


def still(config: Config, board: Board) -> AbstractContextManager[bool]:
    """Nobody changes the state inside; gives False when a worker did not heed that in time.

    It is not waited for long: others would wait with it, and it may be one that hangs.
    """
    elsewhere = config.transport == "local" and config.scheme.applies_apart
    return board.paused(HEED_WITHIN) if elsewhere else nullcontext(True)


def paused(config: Config, board: Board) -> AbstractContextManager[bool]:
    """All workers wait inside, so that all cores are free; gives False when one did not heed that in time."""
    elsewhere = config.transport == "local" and not config.scheme.single
    return board.paused() if elsewhere else nullcontext(True)


__all__ = ["TRANSPORTS", "paused", "run", "still"]
