"""The local transport: each worker runs in its own process (or thread), and the scheme's main role in this process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any

import cloudpickle

from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.optim.flat import State
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.shared.timing import Part, Watch
from polyactor.system import deadline, failpoints
from polyactor.system.child_processes import stopping_too
from polyactor.system.machine import shared_memory
from polyactor.transport.main_role import supervised
from polyactor.transport.processes import ProcessPool
from polyactor.transport.supervisor import Supervisor
from polyactor.transport.threads import ThreadPool
from polyactor.transport.watchdog import Tell, untold

DEAF = 0.2
"""Seconds after which a worker that waits checks its condition again, even if it was not woken."""


def run_roles(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    """Start the workers, run the scheme's main role in this process, and stop the workers at the end.

    Args:
        parts: the parts of the run.
        tell: called when a worker starts, is lost or is replaced.
    """
    config, state, counters = parts.config, parts.state, parts.counters
    with ExitStack() as stack:
        with shared_memory():
            roles = stack.enter_context(config.scheme.roles(parts, Sharing(parts, across=True)))
            state.share_()
            counters.share_()
        for worker in range(roles.workers):
            counters.heartbeats.begin(worker)
            counters.leave(worker)  # a pause need not wait for a worker before its first turn
        # cloudpickle, because an environment or algorithm may be defined in the user's own script.
        part = (roles.work, config, parts.spec)
        given = (part if roles.threads else cloudpickle.dumps(part), state, counters, *roles.shared)
        pool = (ThreadPool if roles.threads else ProcessPool)(run_role, roles.workers, given)
        stack.callback(pool.stop)
        stack.enter_context(stopping_too(lambda: map(pool.pid, range(roles.workers))))
        stack.callback(counters.stop)
        yield from supervised(roles, Supervisor(pool, config, counters, roles, tell))


def run_role(worker: int, part: Any, state: State, counters: SharedCounters, *shared: Any) -> None:
    """Run the role of a worker to its end, in the worker's own process or thread.

    Args:
        worker: the number of the worker.
        part: the role's function, the config and the environments' spec; pickled for a process.
        state: θ and all statistics, in shared memory.
        counters: the counters of the run, in shared memory.
        shared: the scheme's own objects in shared memory.
    """
    work, config, spec = cloudpickle.loads(part) if isinstance(part, bytes) else part
    failpoints.arm(worker, spared=counters.starts(worker) > 0)
    with suppress(deadline.Halted), closing(work(worker, Parts(config, spec, state, counters), *shared)) as role:
        for turn, wake_up in enumerate(role):
            if turn == 0:
                counters.enter(worker)
            counters.heartbeats.beat(worker)
            if wake_up is not None:
                watch = Watch(partial(counters.spend, worker))
                wake_up.wait(DEAF)
                watch.lap(Part.WAIT)
            else:
                counters.count(worker, Counter.TURNS, 1)
            if not counters.proceed(worker):
                break
    counters.leave(worker)
