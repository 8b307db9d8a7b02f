"""The main role of a scheme in the run's own process, while a supervisor looks after the workers."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from functools import partial

from polyactor.config import Roles
from polyactor.shared.counters import nothing
from polyactor.system.machine import computing
from polyactor.transport.supervisor import Supervisor

LOOK_EVERY = 0.05
"""Seconds between two checks for workers that failed."""


def supervised(roles: Roles, supervisor: Supervisor) -> Generator[None, None, None]:
    """Run the main role of a scheme in this process, if there is one, while a supervisor looks after the workers."""
    counters = supervisor.counters
    with ExitStack() as stack:
        stack.callback(setattr, counters, "meanwhile", nothing)
        counters.meanwhile = partial(supervisor.supervise, 0.0)
        if roles.main is None:
            while not supervisor.supervise(LOOK_EVERY):
                yield
            return
        looked = time.monotonic()
        with computing(1), closing(roles.main) as main:
            for wake_up in main:
                if wake_up is not None:
                    supervisor.supervise(LOOK_EVERY, wake_up)
                elif time.monotonic() - looked > LOOK_EVERY:
                    supervisor.supervise(0.0)
                    looked = time.monotonic()
                yield
