"""Calls of C libraries that take seconds, in which a thread cannot be interrupted, and the end of the interpreter."""

from __future__ import annotations

import multiprocessing.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from polyactor.errors import Command, in_brief
from polyactor.system.child_processes import end_noted

BREATH = 0.05
"""Seconds between two long calls in which the main thread, that may have waited for the first, can heed a signal."""

_one_at_a_time = threading.Lock()
_refusals: list[Callable[[], bool]] = []


class Refused(Command):
    """This thread shall end, so it may not begin another long call. No environment or algorithm should catch it."""


def may_begin_long_call() -> None:
    """Return in the main thread, and in others while they shall go on.

    Raises:
        Refused: this is not the main thread, and it shall end.
    """
    if threading.current_thread() is not threading.main_thread() and any(refused() for refused in _refusals):
        raise Refused


@contextmanager
def holding_interpreter() -> Iterator[None]:
    """Make a long call that holds the interpreter in the with block, while no other thread makes one.

    Raises:
        Refused: this is not the main thread, and it shall end.
    """
    with _one_at_a_time:
        may_begin_long_call()
        yield
        if threading.current_thread() is not threading.main_thread():
            time.sleep(BREATH)


@contextmanager
def long_calls_until(refused: Callable[[], bool]) -> Iterator[None]:
    """Refuse threads other than the main one long calls inside the with block, once `refused` returns True in them."""
    _refusals.append(refused)
    try:
        yield
    finally:
        _refusals.remove(refused)


@contextmanager
def no_exit() -> Iterator[None]:
    """Make it an error inside the with block where a user's code exits, which would end a run as if all were well.

    Raises:
        RuntimeError: the code raised SystemExit.
    """
    try:
        yield
    except SystemExit as stop:
        raise RuntimeError(f"code of your own raised {in_brief(stop)}, as sys.exit does") from stop


def leave(code: int) -> NoReturn:
    """Exit with a code: at once where workers are still in threads, which the interpreter's teardown would crash.

    So it is where an environment has left a thread that is no daemon, for which Python would wait without end.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    if any(not thread.daemon or thread.name.startswith("polyactor-worker") for thread in others):
        end_noted()
        with suppress(OSError):  # what multiprocessing would remove
            shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)
        os._exit(code)
    sys.exit(code)
