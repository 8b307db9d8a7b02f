"""Run directories: each run has one, and a lock lets only one process at a time train in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyactor.config import Config
from polyactor.envs import name_of
from polyactor.errors import RunDirectoryError, one_line
from polyactor.storage.atomic import replace_file, writing
from polyactor.storage.checkpoint import FOLDER
from polyactor.system.script import refuse_run

LOCK = "run.lock"
"""The lock file of a run directory. It names the process that trains there, which removes it at its end."""

RESUME = "go on with: polyactor resume"
"""How a message begins the command that resumes a run; `how_to_resume` has all of it."""

CONFIG = "config.json"
"""The file with the config of a run, for people and plots; a resumed run reads the config in its checkpoint."""


def run_directory(config: Config) -> Path:
    """Return the directory for a new run: ``config.out``, or an unused name in ``runs/``. Nothing is created.

    The path is absolute: an environment may change the working directory.

    Raises:
        RunDirectoryError: the directory is taken, or cannot be created.
    """
    if config.out == "":
        raise RunDirectoryError("--out is empty: it must be the directory for a new run")
    if config.out is not None:
        directory = Path(os.path.expanduser(config.out))  # a shell leaves the ~ of --out=~/run as it is
    else:
        stem = f"{_short(config.preset) or 'run'}-{_short(name_of(config.env))}-{datetime.now():%Y%m%d-%H%M%S}"
        directory = Path("runs") / stem
        for n in range(2, 1000):
            if not os.path.exists(directory):
                break
            directory = Path("runs") / f"{stem}-{n}"
    refuse_taken(directory)
    try:
        whole = directory.absolute()
    except FileNotFoundError:
        raise RunDirectoryError(f"--out {directory} cannot be made: the working directory does not exist") from None
    parent = next(p for p in (directory, *whole.parents) if os.path.exists(p))
    if not os.access(parent, os.W_OK):
        raise RunDirectoryError(f"--out {directory} cannot be made: {parent} is not writable")
    return whole


def _short(name: str) -> str:
    """Return the last part of a name, with nothing in it that cannot be typed: letters, digits, dots and dashes."""
    last = re.split(r"[/:]|<locals>\.", name)[-1]
    return re.sub(r"[^\w.]+", "-", last).strip("-.")[:60]


def refuse_taken(directory: Path, *, mine: bool = False) -> None:
    """Refuse a directory for a new run that holds any file besides a lock file.

    Args:
        directory: the directory for a new run, which may not exist yet.
        mine: whether this process holds the directory's lock.

    Raises:
        RunDirectoryError: the directory holds files, another process trains in it, or it is no directory.
    """
    # Of a name that is too long os.path says that there is no such file, where Path raises.
    free = not os.path.exists(directory)
    if free or (os.path.isdir(directory) and {entry.name for entry in directory.iterdir()} <= {LOCK}):
        return
    if not mine and os.path.isfile(directory / LOCK):
        descriptor = _opened(directory, create=False)
        try:
            _lock(descriptor, directory)
        finally:
            os.close(descriptor)
    raise RunDirectoryError(f"--out {directory} is taken: choose another directory, or {how_to_resume(directory)}")


def how_to_resume(directory: Path) -> str:
    """Return what a message says of resuming the run in `directory`: a command, quoted for a shell."""
    return f"{RESUME} {shlex.quote(str(directory))}"


def run_of(path: Path) -> Path:
    """Return the run directory of a checkpoint directory; any other path is returned as it is."""
    folder = path.absolute().parent
    return folder.parent if folder.name == FOLDER and os.path.isfile(folder.parent / CONFIG) else path


def write_config(directory: Path, plain: Mapping[str, Any]) -> None:
    """Write the config of a run, as plain JSON, to ``config.json``.

    Raises:
        OutOfResources, RunDirectoryError: the file cannot be written; its old content is untouched.
    """
    with writing(directory):
        replace_file(directory / CONFIG, (json.dumps(plain, indent=1) + "\n").encode())


_holding: set[int] = set()
"""The descriptors by which this process holds locks."""


def _let_go() -> None:
    """Close, in a forked process, what would hold the locks on when the one that trains has ended."""
    while _holding:
        os.close(_holding.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Create a run directory if it is missing, and hold its lock inside the context.

    The kernel releases the lock when the process ends in any way, so the lock file of a killed process blocks no run.
    Processes that an environment has forked do not hold it.

    Raises:
        RunDirectoryError: another process holds the lock, or the directory cannot be written; then nothing is changed.
    """
    refuse_run()
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(directory)
    _holding.add(descriptor)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        with writing(directory / LOCK):
            os.ftruncate(descriptor, 0)
            holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        if descriptor in _holding:  # else this is a forked process
            with suppress(OSError):
                (directory / LOCK).unlink()  # while locked: a process that has just opened it notices
            _holding.remove(descriptor)
            os.close(descriptor)


def _locked(directory: Path) -> int:
    """Return a descriptor that holds the lock of the lock file now in the directory."""
    while True:
        descriptor = _opened(directory, create=True)
        try:
            _lock(descriptor, directory)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(directory / LOCK)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous owner removed the file before we locked it


def _opened(directory: Path, *, create: bool) -> int:
    """Return a descriptor of the lock file. Raises `RunDirectoryError` where it is no regular file."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    with writing(directory / LOCK):
        descriptor = os.open(directory / LOCK, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunDirectoryError(f"cannot write {directory / LOCK}: it is not a regular file")
    return descriptor


def _lock(descriptor: int, directory: Path) -> None:
    """Lock an open lock file. Raises `RunDirectoryError` where another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirectoryError(f"{directory} is in use by {_holder(os.pread(descriptor, 1000, 0))}") from None
    except OSError as error:
        raise RunDirectoryError(f"cannot lock {directory / LOCK}: {error.strerror}") from error


def _holder(content: bytes) -> str:
    """Return who holds a lock, by the content of the lock file, which may be half written."""
    try:
        found = json.loads(content)
        text = f"process {int(found['pid'])} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return "another process"
    return one_line(text)
