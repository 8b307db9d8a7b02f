"""A guardian process: when the process that began it has ended, however it did, it ends what bears a mark.

Those who bear the mark are the processes with a certain environment variable, which each passes on to what it begins,
and those with a title of Ray's, which overwrites it, that have a file of the folder open. They are found in ``/proc``,
so that elsewhere than on Linux none is. It is run as a script, and imports nothing but Python's own modules.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TITLE = b"ray::"
"""What the titles of Ray's own processes begin with."""
SWEEPS_FOR = 10.0
"""Seconds for which processes with the mark are looked for; one may begin another while it is being ended."""


@contextmanager
def guarded(name: str, value: str, folder: str) -> Iterator[None]:
    """At the end of the with block, or of this process, end the processes with a mark and remove a folder.

    Args:
        name: the name of the environment variable, which this process may set later for what it begins.
        value: its value.
        folder: the folder.
    """
    environ = {key: kept for key, kept in os.environ.items() if (key, kept) != (name, value)}
    guardian = subprocess.Popen(
        [sys.executable, "-I", __file__, f"{name}={value}", folder],  # whatever modules lie where the run begins
        stdin=subprocess.PIPE,  # closed by the kernel when this process ends
        env=environ,
        start_new_session=True,  # which gets no terminal's signals
    )
    try:
        yield
    finally:
        assert guardian.stdin is not None
        guardian.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            guardian.wait(2 * SWEEPS_FOR)


def sweep(mark: str, folder: str) -> None:
    """Kill all processes with a mark or a file of a folder until there are none left, for `SWEEPS_FOR` at most."""
    end = time.monotonic() + SWEEPS_FOR
    while (found := _marked(mark.encode(), folder)) and time.monotonic() < end:
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove(folder: str) -> None:
    """Remove a folder, again and again for `SWEEPS_FOR` seconds: the guarded process may still write there."""
    end = time.monotonic() + SWEEPS_FOR
    while os.path.exists(folder) and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _marked(mark: bytes, folder: str) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with suppress(OSError):
            marked = mark in _read(f"/proc/{entry}/environ").split(b"\0")  # that of a zombie is empty
            if marked or (_read(f"/proc/{entry}/cmdline").startswith(TITLE) and _holds(entry, folder)):
                found.append(int(entry))
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _holds(entry: str, folder: str) -> bool:
    """Return whether a process has a file of the folder open."""
    descriptors = f"/proc/{entry}/fd"
    return any(os.readlink(f"{descriptors}/{each}").startswith(f"{folder}/") for each in os.listdir(descriptors))


if __name__ == "__main__":
    sys.stdin.buffer.read()
    sweep(*sys.argv[1:])
    remove(sys.argv[2])
