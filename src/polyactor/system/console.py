"""Where lines for a person go."""

from __future__ import annotations

from contextlib import suppress

from rich.console import Console


class Lasting(Console):
    """Where nobody reads any more (`polyactor train … | head`) it falls silent, and whoever writes goes on."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on, but do not exit."""
        with suppress(SystemExit):
            super().on_broken_pipe()
