"""Standard input, output and error: printing never costs the work, whatever became of the terminal."""

from __future__ import annotations

import codecs
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from polyactor.errors import PolyactorError, one_line

STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""Names of the standard streams, in the order of their file descriptors, and the modes that they are opened in."""


class Replacing:
    """A text stream whose writes do not fail: for output that a program can do without.

    Args:
        stream: the stream to write to, perhaps an object of the user's, which may lack methods and raise anything; it
            is silenced when the system fails a write, as where its terminal is gone.
        passing: exceptions of the stream that are passed on.
    """

    def __init__(self, stream: IO[str], passing: tuple[type[Exception], ...] = ()) -> None:
        self.stream, self.passing = stream, passing
        self.failure = ""
        """Why the first write failed that did."""

    def write(self, text: str) -> int:
        """Write a text, with ``?`` for each character that the stream's encoding lacks."""
        encoding = self.encoding
        with self._failing():
            self.stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with self._failing():
            self.stream.flush()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, (*self.passing, PolyactorError)):  # the latter interrupts an environment that prints
                raise
            self.failure = self.failure or getattr(error, "strerror", "") or one_line(error) or type(error).__name__
            if isinstance(error, OSError | ValueError):  # ValueError: somebody has closed it
                silence(self.stream)

    @property
    def encoding(self) -> str:
        """The stream's encoding, or UTF-8 where it names none that Python knows."""
        with suppress(Exception):
            return codecs.lookup(getattr(self.stream, "encoding", "")).name
        return "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        with suppress(Exception):
            return bool(self.stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.stream, name)
        except Exception:
            raise AttributeError(f"the stream has no {name}") from None


def silence(stream: IO[str]) -> None:
    """Point a stream at the null device, so that neither later writes nor the interpreter's last flush fail."""
    with suppress(Exception):  # it has no file descriptor, whatever it says so by
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
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

    Streams that are closed are replaced by the null device. A write fails only where the reader of the standard output
    has left.
    """
    occupy_descriptors()
    before = [getattr(sys, name) for name in STREAMS]
    for descriptor, (name, mode) in enumerate(STREAMS.items()):
        stream = before[descriptor] or os.fdopen(descriptor, mode, closefd=False)
        passing = (BrokenPipeError,) if name == "stdout" else ()  # what goes to stderr is said beside the work
        setattr(sys, name, stream if mode == "r" else Replacing(stream, passing))
    printed: Any = sys.stdout
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                silence(stream)
        if printed.failure:
            print(f"polyactor: what was printed could not be written: {printed.failure}", file=sys.stderr)
        for name, stream in zip(STREAMS, before, strict=True):
            setattr(sys, name, stream)


def print_without_fail() -> None:
    """Let what is printed in this process never fail, since its terminal may be gone before its work is done."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            setattr(sys, name, Replacing(stream))


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let what environments print in the with block never fail, and put the standard streams back after it.

    Outside the main thread nothing is done, since all threads share the streams.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.stdout, sys.stderr
    print_without_fail()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
