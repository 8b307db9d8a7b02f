"""Trying in a process of its own what may end its process, such as to draw without a display."""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from polyactor.system.child_processes import end_worker, lead_group


def fate(work: Callable[[], object], seconds: float, stopped: Callable[[], bool]) -> str:
    """Do work in a copy of this process, and return what ended the copy, such as SIGABRT; nothing if the work did not.

    Work that raises an exception, or takes too long, is for this process to find out. Elsewhere than on Linux, where a
    copy may die of being one, nothing is tried.

    Args:
        work: is called, with its output thrown away.
        seconds: after these the copy is ended.
        stopped: returns True to end the copy.
    """
    if sys.platform != "linux":
        return ""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, which the copy does not have
        pid = os.fork()
    if pid == 0:
        _do(work, seconds, writing)
    with suppress(OSError):  # it may have ended
        os.setpgid(pid, pid)  # as it does itself, but maybe not before it is to be ended
    os.close(writing)
    end, answered = monotonic() + seconds, False
    while not answered and not stopped() and monotonic() < end:
        answered = bool(select.select([reading], [], [], 0.1)[0])
    worked = answered and os.read(reading, 1)
    os.close(reading)
    gone = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | (0 if answered else os.WNOHANG))
    end_worker(pid)  # and what it has begun
    os.waitpid(pid, 0)
    if worked or gone is None or gone.si_status == signal.SIGALRM:
        return ""
    return f"exit code {gone.si_status}" if gone.si_code == os.CLD_EXITED else signal.Signals(gone.si_status).name


def _do(work: Callable[[], object], seconds: float, writing: int) -> None:
    """Do the work as the copy, tell that it is done, and end."""
    try:
        lead_group()
        gc.disable()  # which would close what is not the copy's
        faulthandler.disable()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # also of work that lets no other thread run
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        with suppress(BaseException):
            work()
        os.write(writing, b".")
    finally:
        os._exit(0)
