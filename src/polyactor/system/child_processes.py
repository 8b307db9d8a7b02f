"""Ending the processes that workers and environments have begun, such as simulators.

A worker leads a process group of its own. What it begins belongs to this group and does not get Ctrl-C, which is the
run's; who ends the worker ends the group. It is no session, since the kernel shares the processor among sessions
whatever the niceness of their processes. In the run's own process an environment has no group: the processes are noted
that the calling thread begins while an environment is made or first reset, and, in a program without threads of its
own, all that begin while there are environments. No other process is ever ended.

Processes are found in ``/proc``, so that elsewhere than on Linux none is. A process that leads a group of its own is
found as long as the one that began it lives.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from time import monotonic, sleep
from types import FrameType
from weakref import WeakSet

noted: set[int] = set()
"""The processes that environments of this process have begun, and that have not been ended here."""


@contextmanager
def noting(begun: set[int]) -> Iterator[None]:
    """Add the processes that this thread begins inside the context to `begun`, and to those ended with this process.

    If the context is left by an exception, they are ended, since nothing can be asked to close them.
    """
    before = children()
    try:
        yield
    except BaseException:
        end_noted(children() - before)
        raise
    new = children() - before
    begun |= new
    _note(new)


def _note(new: set[int]) -> None:
    if new and not noted:
        atexit.register(end_noted)
    noted.update(new)


class Beginnings:
    """Notes what environments begin in whatever call, and in threads of theirs, at its end or that of this process.

    In a program with threads of its own nothing is noted: what they begin is theirs.
    """

    def __init__(self) -> None:
        here = threading.current_thread()
        others = [each for each in threading.enumerate() if each is not here and not each.name.startswith("polyactor")]
        self.before = None if others else children("/proc/self/task")
        _open.add(self)

    def note(self) -> None:
        """Note what has begun so far."""
        if self.before is not None:
            servers = forkserver._forkserver, resource_tracker._resource_tracker  # the caller may need them yet
            ours = {getattr(servers[0], "_forkserver_pid", None), getattr(servers[1], "_pid", None)}
            _note(children("/proc/self/task") - self.before - ours)

    def end(self) -> None:
        """Note what has begun so far, and nothing that begins later."""
        self.note()
        self.before = None


_open: WeakSet[Beginnings] = WeakSet()


def end_noted(begun: set[int] | None = None) -> None:
    """End noted processes, by default all: those that still are children of this process, and what they have begun."""
    if begun is None:
        for each in list(_open):
            each.note()
        begun = set(noted)
    noted.difference_update(begun)
    mine, table = os.getpid(), _processes() if begun else {}
    _kill(_family({pid for pid in begun if pid in table and table[pid][0] == mine}, table))


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """End what environments have begun if SIGTERM or SIGHUP ends this process inside the context.

    For a program of our own: outside the main thread, and where a signal is ignored or handled already, nothing is
    done.
    """
    here = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if here and signal.getsignal(n) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        end_noted()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def end_worker(pid: int) -> None:
    """Kill a worker that has called `lead_group`, if it lives, and the processes of its group and begun by them.

    Args:
        pid: the worker's process id; 0 if there is none.
    """
    if pid > 0:
        _kill(_family({pid}, _processes()) - {pid})
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # the number of a worker that is gone may be that of another process by now


def lead_group() -> None:
    """Make this process the leader of a new group, which `end_worker` ends, and which gets no terminal's signals."""
    os.setpgid(0, 0)


def die_with_run(litter: str) -> None:
    """Start a thread that kills this process and its group when the run's own process ends, or has ended already.

    The kernel's parent-death signal would not do: the parent of a worker is the fork server.

    Args:
        litter: the temporary folder of multiprocessing, removed here because a killed run does not remove it.
    """
    run = multiprocessing.parent_process()
    assert run is not None

    def watch() -> None:
        run.join()
        shutil.rmtree(litter, ignore_errors=True)
        end_worker(os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-run", daemon=True).start()


@contextmanager
def stopping_too(workers: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Stop and continue workers, which lead groups of their own, with this process where a terminal stops it.

    Outside the main thread, and where SIGTSTP (Ctrl-Z) is ignored or handled already, nothing is done.

    Args:
        workers: returns the workers' process ids; 0 for those that do not run, and this process's for threads.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        pids = set(workers()) - {0, os.getpid()}  # the group of this process is stopped by the terminal
        for wanted in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, wanted)
            if wanted == signal.SIGSTOP:
                os.kill(os.getpid(), wanted)  # returns when this process is continued

    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def children(threads: str = "") -> set[int]:
    """Return the processes that this thread, or each of a folder, has begun and that have not been waited for."""
    found = set[int]()
    with suppress(OSError):
        for thread in [f"{threads}/{name}" for name in os.listdir(threads)] if threads else ["/proc/thread-self"]:
            with suppress(OSError), open(f"{thread}/children") as file:
                found.update(map(int, file.read().split()))
    return found


def lasting(pids: Iterable[int], patience: float = 0.5) -> set[int]:
    """Return those of these processes that still run after some seconds, but for Python's own resource tracker."""
    left, end = set(pids), monotonic() + patience
    while left := {pid for pid in left if _runs(pid)}:
        if monotonic() > end:
            break
        sleep(0.01)
    return left


def _runs(pid: int) -> bool:
    """Return whether a process runs: it is neither gone nor only waiting to be collected by this process."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as stat, open(f"/proc/{pid}/cmdline", "rb") as command:
            return stat.read().rpartition(")")[2].split()[0] != "Z" and b"resource_tracker" not in command.read()
    except OSError:
        return False


def _processes() -> dict[int, tuple[int, int]]:
    """Return the parent and the group of each process of this machine, by process id."""
    found = {}
    with suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
                # The name of the program, in parentheses, may hold anything.
                _, parent, group = file.read().rpartition(")")[2].split()[:3]
                found[int(name)] = int(parent), int(group)
    return found


def _family(roots: set[int], table: dict[int, tuple[int, int]]) -> set[int]:
    """Return the roots in the table, what has begun in one of them, and what is of a group that one of them leads."""
    found = {pid for pid in table if pid in roots}
    leaders = set(roots)
    while new := {pid for pid, ties in table.items() if pid not in found and not leaders.isdisjoint(ties)}:
        found |= new
        leaders |= new
    return found


def _kill(pids: Iterable[int]) -> None:
    for pid in set(pids) - {os.getpid()}:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
