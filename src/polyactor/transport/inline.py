"""The inline transport: all roles take turns in one thread, for debuggers, notebooks and tests."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing

from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.agent.streams import GLOBAL_STREAM, Streams
from polyactor.config import Role
from polyactor.system.deadline import Halted
from polyactor.system.machine import computing
from polyactor.system.process_state import kept_streams
from polyactor.transport.watchdog import Tell, untold, watched


def run_roles(parts: Parts, tell: Tell = untold, *, order: Iterable[int] | None = None) -> Generator[None, None, None]:
    """Run all roles in turn and yield after each turn.

    A turn lasts until the role has made a rollout or an update, or has to wait. Environments share the global random
    streams of this process, which are seeded for them and put back at the end.

    Args:
        parts: the parts of the run.
        tell: called when an environment hangs.
        order: the role of each turn: 0 to W−1 are the workers, W is the scheme's main role. By default the roles take
            turns in this order, again and again.

    Raises:
        RuntimeError: every role waits for another.
    """
    over: set[int] = set()
    waits = 0
    with ExitStack() as stack:
        roles = stack.enter_context(parts.config.scheme.roles(parts, Sharing(parts)))
        playing: list[Role] = [roles.work(i, parts, *roles.shared) for i in range(roles.workers)] if roles.work else []
        main = roles.main
        if main is not None:
            playing.append(main)
        stack.enter_context(computing(1))
        config, version = parts.config, parts.counters.version
        stack.enter_context(kept_streams(Streams.of(config.seed, GLOBAL_STREAM, version).env))
        stack.enter_context(watched(parts.config, parts.counters, tell))
        for role in playing:  # closed before the number of torch threads is restored: roles change and restore it, too
            stack.enter_context(closing(role))
        for i in order or itertools.cycle(range(len(playing))):
            try:
                waits = waits + 1 if next(playing[i]) is not None else 0
            except Halted:
                return
            except StopIteration:
                over.add(i)
                if playing[i] is main or len(over) == len(playing):
                    return
            if order is None and waits > 2 * len(playing):
                raise RuntimeError("every role waits for another")
            yield
