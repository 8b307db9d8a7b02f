"""Atomic writes: a crash leaves a file's old content or its new one, and a full disk gives an error of one sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyactor.errors import OutOfResources, PolyactorError, RunDirectoryError

HALF = (".", ".tmp")
"""Prefix and suffix of the temporary name under which a file is written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside the context, while writing ``path``, into an error of one sentence.

    Raises:
        OutOfResources: the disk or the quota is full, or a process may not make so large a file.
        RunDirectoryError: any other `OSError`, such as a read-only disk or a missing permission.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        kind: type[PolyactorError] = RunDirectoryError
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kind = OutOfResources
        raise kind(f"cannot write {path}: {reason}") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds its old content or its new one. Raises `OSError`."""
    temporary = path.with_name(f"{HALF[0]}{path.name}{HALF[1]}")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed write, or a planted link
        write_new(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Create a file that does not exist yet and force it to disk. Raises `OSError`."""
    with open(path, "xb") as file:  # a new file, so no link is followed
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Force the entries of a directory to disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot, and need not
            raise
    finally:
        os.close(descriptor)
