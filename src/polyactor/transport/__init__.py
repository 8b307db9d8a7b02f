"""Where the roles of a scheme play: each worker in a process or thread of its own, or all taking turns in this one."""

from __future__ import annotations

from collections.abc import Generator

from polyactor.agent.parts import Parts
from polyactor.transport import inline, local
from polyactor.transport.pause import paused, still
from polyactor.transport.watchdog import Tell, untold

RUNNERS = {"local": local.run_roles, "inline": inline.run_roles}
"""How each transport plays; `polyactor.config.TRANSPORTS` has what it can."""


def run(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    """Train; yields whenever the caller may look at the counters and the state, or stop by closing it.

    Args:
        parts: of the run.
        tell: of workers that start, are lost and are replaced.
    """
    config = parts.config
    return RUNNERS["inline" if config.scheme.single else config.transport](parts, tell)


__all__ = ["PLAYS", "paused", "run", "still"]
