"""The terminal that polyactor prints to."""

from __future__ import annotations

from contextlib import suppress

from rich.console import Console


class Lasting(Console):
    """A console that goes silent when its reader is gone (`polyactor train … | head`), so that the run goes on."""

    def on_broken_pipe(self) -> None:
        """Discard all further output instead of ending the process."""
        with suppress(SystemExit):
            super().on_broken_pipe()
