"""A worker on a node of the cluster: it plays the scheme's own `work`, a turn for each call of the run."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import cloudpickle
import ray

from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.config import Role
from polyactor.data.wire import Arrays, decode, encode
from polyactor.envs.registrations import register
from polyactor.errors import ClusterFailed, one_line
from polyactor.shared.counters import Counter, Order
from polyactor.shared.slot_queue import WakeUp
from polyactor.shared.timing import Part, Watch
from polyactor.system import failpoints
from polyactor.system.child_processes import end_worker
from polyactor.system.machine import settle
from polyactor.transport.last_words import LastWords
from polyactor.transport.ray.letters import Greeting, Letter, Versions, differing, own_versions

LOOK_EVERY = 0.5
"""Seconds between two looks at whether the node's own process still lives."""


class Remote:
    """Runs one worker; each method is called by the run, over the network.

    Whatever is raised comes back as `LastWords`, so that the run knows the error's class.

    Args:
        worker: the number of the worker.
    """

    def __init__(self, worker: int) -> None:
        threading.Thread(target=_die_with_node, args=(os.getppid(),), name="die-with-node", daemon=True).start()
        self.worker, self.exits = worker, ExitStack()

    def greet(self, versions: Versions, given: bytes, order: Order) -> Greeting | LastWords:
        """Make all that the worker needs but its environments, which the first turn makes.

        Args:
            versions: the versions of packages that the run has.
            given: config, spec and registered ids of the run, pickled.
            order: what the worker is told of the run.
        """
        try:
            node = os.uname().nodename
            if words := differing(own_versions(), versions):
                raise ClusterFailed(f"node {node} has {words}: install the same everywhere")
            self._prepare(given, order)
            return Greeting(node, os.getpid())
        except BaseException as error:
            return LastWords.of(error)

    def _prepare(self, given: bytes, order: Order) -> None:
        settle()
        try:
            config, spec, registered = cloudpickle.loads(given)
        except ImportError as error:
            raise ClusterFailed(
                f"node {os.uname().nodename} lacks a module of the run, since files do not travel: {one_line(error)}"
            ) from None
        register(registered)
        failpoints.arm(self.worker, spared=order.starts > 0)
        self.scratch = self.exits.enter_context(ExitStack())
        remembers = config.algorithm.remembers > 0  # others need no folder, which a worker that is killed would leave
        out = self.scratch.enter_context(TemporaryDirectory(prefix="polyactor-replay-")) if remembers else None
        self.parts = parts = Parts.of_worker(replace(config, out=out), spec)
        parts.counters.obey(self.worker, order)
        sharing = Sharing(parts, only=self.worker, wake_up=WakeUp())
        roles = self.exits.enter_context(config.scheme.roles(parts, sharing))
        assert roles.work is not None
        self.slots, self.places, _ = roles.shared
        self.role: Role = self.exits.enter_context(closing(roles.work(self.worker, parts, *roles.shared)))
        self.idle = Watch(partial(parts.counters.spend, self.worker))

    def turn(self, order: Order, number: int | None, published: Arrays | None) -> Letter | LastWords:
        """Play until one more slot is filled, the worker has to wait, or its role has ended.

        Args:
            order: what the worker is told of the run.
            number: of the slot to be filled; None if there is none, since the worker is not let in yet.
            published: θ and the running statistics, if the worker does not know this version.
        """
        worker, slots, parts = self.worker, self.slots, self.parts
        try:
            self.idle.lap(Part.WAIT)
            parts.counters.obey(worker, order)
            if published is not None:
                decode(published, parts.state.layout.split(parts.state.vector))
            slots.grant(worker, number)
            before = slots.filled(worker)
            done = self._play(before)
            self.scratch.close()  # what is mapped of it stays until this process ends
            arrays = None
            if slots.filled(worker) != before:
                place = self.places.place(worker, before % slots.slots)
                arrays = encode(place.named(), parts.config.ray.wire)
            self.idle = Watch(self.idle.spend)
            return Letter(arrays, parts.counters.report(worker), slots.left(worker), done)
        except BaseException as error:
            return LastWords.of(error)

    def _play(self, before: int) -> bool:
        """Play until the number of filled slots has changed or the worker waits; return whether the role has ended."""
        counters, worker = self.parts.counters, self.worker
        for wake_up in self.role:
            counters.heartbeats.beat(worker)
            if wake_up is not None:
                return False
            counters.count(worker, Counter.TURNS, 1)
            if self.slots.filled(worker) != before:
                return False
        return True

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def pulse(self) -> Any:
        """Return the age of the last sign of life, and what the worker waits for, as `Heartbeats.ages` does."""
        return self.parts.counters.heartbeats.ages(self.worker)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Ask the worker to end its turn between two steps of an environment."""
        self.parts.counters.stop()

    def close(self) -> None:
        """Close the environments."""
        self.exits.close()


def _die_with_node(raylet: int) -> None:
    """Kill this process and what it has begun when the node's own process is gone, which Ray does not."""
    while os.getppid() == raylet:
        time.sleep(LOOK_EVERY)
    end_worker(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)
