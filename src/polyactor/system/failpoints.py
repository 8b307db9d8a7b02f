"""Fail points: places where a process can be made to fail, to test that a run survives. They are off by default.

``POLYACTOR_FAIL="update.inside=kill@3,rollout=hang@2/1"`` kills each process that comes to ``update.inside`` for the
third time, and makes worker 1 hang before its second rollout. A process that replaces another one does not fail.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

from polyactor.errors import UsageError

VARIABLE = "POLYACTOR_FAIL"
PLACES = ("read", "rollout", "gradient", "update", "update.inside", "send", "save")
"""The places: while θ is copied, before a rollout, before a gradient is taken, before θ changes, after θ has changed
and before anything else has, before a filled slot is put into a queue, before a checkpoint gets its name."""


def _raise() -> None:
    raise RuntimeError("a fail point raised this")


def _hang() -> None:
    while True:
        time.sleep(3600)


DEEDS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda: os._exit(0),
    "raise": _raise,
    "hang": _hang,
}
_ENTRY = re.compile(r"([a-z.]+)=([a-z]+)@([0-9]+)(?:/([0-9]+))?")
_armed: dict[str, list[tuple[str, int]]] = {}
_met: dict[str, int] = {}


def arm(worker: int | None = None, *, spared: bool = False) -> None:
    """Set the fail points of this process from the environment variable.

    Args:
        worker: the worker that this process runs; None in the run's own process.
        spared: whether this process has no fail points, such as one that replaces another.

    Raises:
        UsageError: an entry of the variable is not of the form above, or names an unknown place or deed.
    """
    _armed.clear()
    _met.clear()
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        match = _ENTRY.fullmatch(entry)
        if match is None or match[1] not in PLACES or match[2] not in DEEDS:
            raise UsageError(
                f"{VARIABLE} {entry} is not allowed: write PLACE=DEED@COUNT or PLACE=DEED@COUNT/WORKER with a place of "
                f"{', '.join(PLACES)} and a deed of {', '.join(DEEDS)}"
            )
        if not spared and match[4] in (None, str(worker)):
            _armed.setdefault(match[1], []).append((match[2], int(match[3])))


def hit(place: str) -> None:
    """Fail if this process has a fail point at this place and has now come to it the given number of times."""
    if _armed:
        _met[place] = _met.get(place, 0) + 1
        for deed, count in _armed.get(place, ()):
            if count == _met[place]:
                DEEDS[deed]()
