"""Runs side by side: what is one group, and what it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyactor.report.compare import compare, interval

CONFIG = {"preset": "p", "algorithm": {"name": "acer", "replay_ratio": 4}, "scheme": {"name": "hogwild"}, "env": "E-v0"}


def run(folder: Path, seed: int, score: float, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"seed": seed} | config))
    (folder / "summary.json").write_text(json.dumps({"score_mean100": score}))
    return folder


def test_seeds_are_one_group_and_other_settings_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    unset = {"envs": None, "max_steps": None, "stuck_after": None, "timeout": 600.0}
    without = {"algorithm": {"name": "acer", "replay_ratio": 0}}
    runs = [
        run(tmp_path / "with" / "seed-1", 1, 2.0),
        run(
            tmp_path / "with" / "seed-2", 2, 4.0, exact_resume=False, evaluate=unset
        ),  # an older run's config lacks a newer field
        run(tmp_path / "without" / "seed-1", 1, 1.0, **without),
    ]
    compare(runs)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row[1:4]] for row in rows]
    assert cells == [
        ["p · hogwild · E-v0", "2", "3 [2, 4]"],
        ["p · hogwild · E-v0 (without)", "1", "1"],
    ]


def test_what_is_unlike_by_a_field_that_matters_is_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    compare([run(tmp_path / "a" / "1", 1, 2.0), run(tmp_path / "b" / "1", 1, 4.0, exact_resume=True)])
    assert "(b)" in capsys.readouterr().out


def test_an_interval_of_seeds_that_agree_is_a_point() -> None:
    assert interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
