"""Writing files so that a crash leaves the old one or the new one, and a full disk gives one sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyactor.errors import OutOfResources, PolyactorError, RunDirectoryError

HALF = (".", ".tmp")
"""Around the name of a file that is being written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` met while writing ``path`` into one sentence.

    Raises:
        OutOfResources: no space or no quota left.
        RunDirectoryError: anything else: read-only, not a directory, no permission.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        kind: type[PolyactorError] = RunDirectoryError
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind = OutOfResources
        raise kind(f"cannot write {path}: {reason}") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old one or the new one; raises `OSError`."""
    temporary = path.with_name(f"{HALF[0]}{path.name}{HALF[1]}")
    try:
        temporary.unlink(missing_ok=True)  # of a write that was killed, or a link that somebody else has put there
        write_new(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """A file that is not there yet, forced to disk; raises `OSError`."""
    with open(path, "xb") as file:  # a new file: no link is followed
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Force to disk what a directory names; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot, and need not
            raise
    finally:
        os.close(descriptor)
