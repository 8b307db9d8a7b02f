"""The terminal that polyactor prints to."""

from __future__ import annotations

from typing import IO

from rich.console import Console

from polyactor.system.streams import Replacing


class Lasting(Console):
    """A console that replaces characters its terminal cannot show, and goes silent when nobody can read it any more."""

    @property
    def file(self) -> IO[str]:
        """The standard output as it is now, or the file that was set."""
        return Replacing(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file
