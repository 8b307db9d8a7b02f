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
from polyactor.shared.counters import Counter, SharedCounters, nothing
from polyactor.shared.timing import Part, Watch
from polyactor.system import failpoints
from polyactor.system.machine import shared_memory, torch_threads
from polyactor.transport.processes import ProcessPool
from polyactor.transport.supervisor import Supervisor
from polyactor.transport.threads import ThreadPool
from polyactor.transport.watchdog import Tell, untold

LOOK_EVERY = 0.05
"""Seconds between two looks for a worker that failed."""
DEAF = 0.2
"""Seconds a role waits at a bell before it looks by itself."""


def run_roles(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    """Start the workers, play the run's own role, stop them in the end.

    Args:
        parts: of the run.
        tell: of workers that start, are lost and are replaced.
    """
    config, state, counters = parts.config, parts.state, parts.counters
    with ExitStack() as stack:
        with shared_memory():
            roles = stack.enter_context(config.scheme.roles(parts))
            state.share_()
            counters.share_()
        for worker in range(roles.workers):
            counters.heartbeats.begin(worker)
            counters.leave(worker)  # until it enters
        # cloudpickle, because an environment or algorithm may be defined in the user's own script.
        part = (roles.work, config, parts.spec)
        given = (part if roles.threads else cloudpickle.dumps(part), state, counters, *roles.shared)
        pool = (ThreadPool if roles.threads else ProcessPool)(run_role, roles.workers, given)
        stack.callback(pool.stop)
        stack.callback(counters.stop)
        supervisor = Supervisor(pool, config, counters, roles, tell)
        stack.callback(setattr, counters, "meanwhile", nothing)
        counters.meanwhile = partial(supervisor.supervise, 0.0)
        if roles.main is None:
            while not supervisor.supervise(LOOK_EVERY):
                yield
            return
        looked = time.monotonic()
        with torch_threads(1), closing(roles.main) as main:
            for wake_up in main:
                if wake_up is not None:
                    supervisor.supervise(LOOK_EVERY, wake_up)
                elif time.monotonic() - looked > LOOK_EVERY:
                    supervisor.supervise(0.0)
                    looked = time.monotonic()
                yield


def run_role(worker: int, part: Any, state: State, counters: SharedCounters, *shared: Any) -> None:
    """A worker's life; to a process its part comes pickled."""
    work, config, spec = cloudpickle.loads(part) if isinstance(part, bytes) else part
    failpoints.arm(worker, spared=counters.starts(worker) > 0)
    with closing(work(worker, Parts(config, spec, state, counters), *shared)) as role:
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
