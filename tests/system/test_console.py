"""What is printed is what was said."""

from __future__ import annotations

import pytest
from rich.table import Table

from polyactor.system.console import Lasting


def test_nothing_is_taken_for_markup_or_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.add_column("runs")
    table.add_row("runs/[lr=1e-3] of pond.py:key: [/end]")
    Lasting().print("lake.c:100: a [bold] move")
    Lasting().print(table)
    said = capsys.readouterr().out
    assert "lake.c:100: a [bold] move" in said
    assert "runs/[lr=1e-3] of pond.py:key: [/end]" in said
