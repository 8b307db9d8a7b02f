"""The terminal that polyactor prints to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import IO, Self

from rich.console import Console

from polyactor.system.streams import Replacing

SAY_EVERY = 8.0
"""Seconds between two lines about something that takes long."""
Say = Callable[[str], object]
"""A function that prints a line."""


def unsaid(line: str) -> None:
    """Print nothing: the default of `say`."""


class Lasting(Console):
    """A console that replaces characters its terminal cannot show, and goes silent when nobody can read it any more."""

    @property
    def file(self) -> IO[str]:
        """The standard output as it is now, or the file that was set."""
        return Replacing(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


class Announcer:
    """Says every 8 seconds inside the with block what is being done, from a thread, so that nothing long is silent.

    Args:
        say: prints a line.
        doing: what is being done; set the attribute when that changes.
    """

    def __init__(self, say: Say, doing: str) -> None:
        self.say, self.doing = say, doing
        self._over, self._thread = threading.Event(), threading.Thread(target=self._speak, daemon=True)

    def _speak(self) -> None:
        """Print lines until the block is left."""
        began = monotonic()
        while not self._over.wait(SAY_EVERY):
            self.say(f"{self.doing}, after {monotonic() - began:.0f} s")

    def __enter__(self) -> Self:
        if self.say is not unsaid:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self.say is not unsaid:
            self._thread.join()
