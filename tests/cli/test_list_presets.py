"""Presets as the command line lists them."""

from __future__ import annotations

import pytest

from polyactor.cli import flags
from polyactor.cli import main as cli
from polyactor.settings.presets import METHODS, PRESETS
from polyactor.settings.published import PUBLISHED
from tests.helpers.settings import value_at


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_the_listing_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.run(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)
    for name in [*METHODS, *PRESETS]:
        assert any(line.startswith(f"  {name}: ") for line in lines)
    assert sum(line.startswith("      measured:") for line in lines) == len(PRESETS)
    assert sum(line.startswith("      published: ") for line in lines) == len(PUBLISHED)


@pytest.mark.parametrize(
    "name", ["pong-a3c-server-3", "breakout-a3c-lstm-8w", "pendulum-a3c-episode", "tmaze-a3c-lstm"]
)
def test_one_preset_in_full_is_flags_that_train_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    preset = PRESETS[name]
    assert cli.run(["presets", name]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in (name, preset.env, preset.method, preset.claim, preset.measured, preset.source))
    shown = [word for line in said.splitlines() if line.startswith("  --") for word in line.split()]
    config = flags.read_config([preset.method, "--env", preset.env, *shown])
    assert {path: value_at(config, path) for path in preset.values} == dict(preset.values)
