"""The terminal that polyactor prints to."""

from __future__ import annotations

from typing import IO

from rich.console import Console

from polyactor.system.streams import Replacing


class Lasting(Console):
    """A console that prints text as it is: nothing in it is taken for markup or for the name of an emoji.

    Characters that its terminal cannot show are replaced, and it goes silent when nobody can read it any more.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    @property
    def file(self) -> IO[str]:
        """The standard output as it is now, or the file that was set."""
        return Replacing(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file
