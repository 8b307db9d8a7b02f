"""Standard input, output and error: printing never costs the work, whatever became of the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""Names of the standard streams, in the order of their file descriptors, and the modes that they are opened in."""


class Replacing:
    """A text stream whose writes never fail: for output that a run can do without.

    Args:
        stream: the stream to write to; it is silenced when a write fails.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, with ``?`` for each character that the stream's encoding lacks."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        with lasting(self.stream):
            self.stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with lasting(self.stream):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting(stream: IO[str]) -> Iterator[None]:
    """Silence a stream when a write in the with block fails: its reader or terminal is gone, or its disk is full."""
    try:
        yield
    except (OSError, ValueError):  # ValueError: somebody has closed it
        silence(stream)


def silence(stream: IO[str]) -> None:
    """Point a stream at the null device, so that neither later writes nor the interpreter's last flush fail."""
    with suppress(OSError, ValueError):  # it has no file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def occupy_descriptors() -> None:
    """Open the null device where file descriptors 0 to 2 are closed.

    Otherwise files of the run would get these numbers, and what a library in C prints would be written into them.
    """
    for descriptor in range(len(STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this


@contextmanager
def standard_streams() -> Iterator[None]:
    """Let a program print in the with block without a thought for its streams; flush them at the end.

    Streams that are closed are replaced by the null device, and characters that an encoding lacks by ``?``.
    """
    occupy_descriptors()
    for descriptor, (name, mode) in enumerate(STREAMS.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                silence(stream)
                if not isinstance(error, BrokenPipeError):
                    print(f"polyactor: what was printed could not be written: {error.strerror}", file=sys.stderr)
