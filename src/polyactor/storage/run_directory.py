"""Where a run lives: a directory of its own, never one that is taken."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyactor.config import Config
from polyactor.errors import RunDirectoryError, one_line
from polyactor.storage.atomic import replace_file, writing
from polyactor.storage.checkpoint import FOLDER

LOCK = "run.lock"
"""Locked by the process that trains in a run directory, and says which that is; gone when that ends in order."""

CONFIG = "config.json"
"""What decided the run, for a person and for pictures; to go on, a run reads its checkpoint's."""


def run_directory(config: Config) -> Path:
    """Where the run will live.

    Raises:
        RunDirectoryError: there is something already, or nothing can be made there.
    """
    if config.out is not None:
        directory = Path(config.out)
    else:
        env = str(config.env).rpartition("/")[2].rpartition(":")[2]
        stem = f"{config.preset or 'run'}-{env}-{datetime.now():%Y%m%d-%H%M%S}"
        directory = Path("runs") / stem
        for n in range(2, 1000):
            if not directory.exists():
                break
            directory = Path("runs") / f"{stem}-{n}"
    refuse_taken(directory)
    parent = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise RunDirectoryError(f"--out {directory} cannot be made: {parent} is not writable")
    return directory


def refuse_taken(directory: Path, *, mine: bool = False) -> None:
    """Refuse a directory that holds anything.

    Args:
        directory: of a run to be.
        mine: this process has claimed it.

    Raises:
        RunDirectoryError: it does, or it is no directory.
    """
    if not directory.exists() or (directory.is_dir() and {entry.name for entry in directory.iterdir()} <= {LOCK}):
        return
    if not mine and (directory / LOCK).is_file():
        descriptor = _opened(directory, create=False)
        try:
            _lock(descriptor, directory)
        finally:
            os.close(descriptor)
    raise RunDirectoryError(
        f"--out {directory} is taken: choose another directory, or go on with: polyactor resume {directory}"
    )


def run_of(path: Path) -> Path:
    """The run that a checkpoint is in; anything else is itself."""
    folder = path.absolute().parent
    return folder.parent if folder.name == FOLDER and (folder.parent / CONFIG).is_file() else path


def write_config(directory: Path, plain: Mapping[str, Any]) -> None:
    """Write what decides the run from now on, as plain JSON.

    Raises:
        OutOfResources, RunDirectoryError: it cannot be written; what was said before is untouched.
    """
    with writing(directory):
        replace_file(directory / CONFIG, (json.dumps(plain, indent=1) + "\n").encode())


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Nobody else trains in this directory inside; it is made when missing.

    The kernel lets go of the lock when the process ends, however that happens, so there is no stale one: a file that a
    killed process leaves is locked by nobody.

    Raises:
        RunDirectoryError: somebody does already, or it cannot be written. Nothing in it has changed then.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(directory)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        with writing(directory / LOCK):
            os.ftruncate(descriptor, 0)
            said = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            os.pwrite(descriptor, said.encode(), 0)
        yield
    finally:
        with suppress(OSError):
            (directory / LOCK).unlink()  # while it is locked: whoever has opened it meanwhile sees that it is gone
        os.close(descriptor)


def _locked(directory: Path) -> int:
    """A descriptor that holds the lock of the file that is there now."""
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
        os.close(descriptor)  # its owner removed it between our opening and locking it


def _opened(directory: Path, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    with writing(directory / LOCK):
        descriptor = os.open(directory / LOCK, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunDirectoryError(f"cannot write {directory / LOCK}: it is not a regular file")
    return descriptor


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirectoryError(f"{directory} is in use by {_holder(os.pread(descriptor, 1000, 0))}") from None
    except OSError as error:
        raise RunDirectoryError(f"cannot lock {directory / LOCK}: {error.strerror}") from error


def _holder(said: bytes) -> str:
    """Who says to hold the lock; it may just be writing it."""
    try:
        own = json.loads(said)
        text = f"process {int(own['pid'])} on {own['host']} since {own['since']}"
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return "another process"
    return one_line(text)
