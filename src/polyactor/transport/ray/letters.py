"""What travels between the run and its workers on other machines: letters, greetings and the published θ."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import ray

from polyactor.data.wire import Arrays, Wire, encode, size
from polyactor.optim.flat import State
from polyactor.shared.counters import Order, Report, SharedCounters
from polyactor.shared.locks import SequenceLock
from polyactor.system.host import versions

BY_VALUE = 100_000
"""Bytes up to which θ travels with each call: an object in the store costs 1 to 2 ms of CPU whatever its size."""

Versions = dict[str, str | None]
"""The version of each package by name; None if it is not installed."""


class Greeting(NamedTuple):
    """What a worker says of itself before its first turn.

    Attributes:
        node: the name of its machine.
        pid: its process id there.
    """

    node: str
    pid: int


class Letter(NamedTuple):
    """What a worker has done in a turn.

    Attributes:
        arrays: the content of the slot that it has filled; None if it has filled none.
        report: what it has counted.
        left: whether it will fill no more slots.
        done: whether its role has ended.
    """

    arrays: Arrays | None
    report: Report
    left: bool
    done: bool


class Publisher:
    """Publishes each version of θ that a worker is about to be given, once.

    Args:
        state: the state of the run.
        counters: the counters of the run.
        lock: held while θ is written.
        wire: what θ travels in.
    """

    def __init__(self, state: State, counters: SharedCounters, lock: SequenceLock, wire: Wire) -> None:
        self.state, self.counters, self.lock, self.wire = state, counters, lock, wire
        self.version, self.published = -1, cast("Any", None)

    def order(self, worker: int, known: int) -> tuple[Order, Any]:
        """Return what a worker is told now, and θ, or None if the worker knows it.

        Args:
            worker: the number of the worker.
            known: the version of θ that the worker has.
        """
        for _ in self.lock.reading():
            order = self.counters.order(worker)
            copy = None if order.version in (known, self.version) else self.state.vector.clone()
        if order.version == known:
            return order, None
        if copy is not None:
            arrays: Any = encode(self.state.layout.split(copy), self.wire)
            self.version, self.published = order.version, arrays if size(arrays) < BY_VALUE else ray.put(arrays)
        return order, self.published


def differing(node: Versions, run: Versions) -> str:
    """Return what differs between the versions of a node and those of the run, in words; empty if nothing does."""
    names = [name for name in run if run[name] != node.get(name)]
    return ", ".join(f"{name} {node.get(name)} (the run has {run[name]})" for name in names)


def own_versions() -> Versions:
    """Return the versions that must be the same on all nodes; Ray itself compares its own and Python's."""
    return versions() | {"numpy": np.__version__}
