"""benchmarks/precision.py: what it reads from a run, its interval, and gradients that do and do not agree."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from polyactor.agent.learner import Learner
from polyactor.data import Rollout
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh

pytestmark = [pytest.mark.alone, pytest.mark.slow]

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def precision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("precision")


def row(steps: int, wall: float, games: int, score: float | None) -> dict[str, Any]:
    return {"agent_steps": steps, "wall_s": wall, "games": games, "score_mean100": score}


ROWS = [row(10, 1.0, 0, None), row(20, 2.0, 99, 9.5), row(30, 3.0, 100, 7.0), row(40, 9.0, 130, 9.0)]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (7.0, (30, 3.0)),
        (9.0, (40, 9.0)),
        (9.5, (None, None)),  # a mean of fewer than 100 games is none
    ],
)
def test_where_a_run_reached_the_target(
    precision: ModuleType, target: float, found: tuple[int | None, float | None]
) -> None:
    assert precision.reached(ROWS, target) == found


WRITER = """
import json, pathlib, signal, sys, time
out, score, last = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
for steps in range(1, 10**9):
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"agent_steps": steps, "wall_s": 0.1, "games": 100, "score_mean100": score}) + "\\n")
    time.sleep(0.01)
    if steps == last:
        sys.exit(last)
"""


@pytest.mark.parametrize(("score", "last"), [("9", "0"), ("8", "5")])
def test_a_run_is_ended_where_it_is_at_the_target(precision: ModuleType, tmp_path: Path, score: str, last: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), score, last]
    if last == "0":
        precision.until_reached(command, tmp_path, 9.0)
    else:  # it fails by itself
        with pytest.raises(subprocess.CalledProcessError):
            precision.until_reached(command, tmp_path, 9.0)


def test_a_run_that_is_kept_is_not_repeated(
    precision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **more: object) -> None:
        raise RuntimeError("it runs")

    monkeypatch.setattr(precision, "until_reached", refused)
    kept = tmp_path / "bf16-seed-1" / "summary.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"target": 9.0, "target_at_steps": 500, "target_at_s": 1.5}))
    assert precision.one("catch-a3c", ["--precision", "bf16"], 1, 9.0, tmp_path) == (500, 1.5)
    for precision_name, target in (("fp32", 9.0), ("bf16", 10.0)):
        with pytest.raises(RuntimeError, match="it runs"):
            precision.one("catch-a3c", ["--precision", precision_name], 1, target, tmp_path)


def test_the_ratio_is_a_geometric_mean_with_students_interval(precision: ModuleType) -> None:
    said = precision.ratio([(100, 200), (400, 200), (10, None), (100, 100)])
    assert said["each"] == [2.0, 0.5, 1.0]
    assert said["mean"] == 1.0
    half = 4.303 * math.log(2) / math.sqrt(3)  # t of two degrees of freedom, from a table
    assert said["high"] == pytest.approx(math.exp(half), rel=0.02)
    assert said["low"] == pytest.approx(math.exp(-half), rel=0.02)
    assert precision.ratio([(1, 2)])["mean"] is None  # one pair has no interval
    assert precision.student(4) == pytest.approx(2.776, rel=0.005)


def test_pairs_of_several_presets_are_pooled(
    precision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "RESULTS", tmp_path)
    for preset, each in {"catch-a3c": [2.0, 0.5], "pong-fast": [1.0]}.items():
        (tmp_path / f"precision-{preset}").mkdir()
        (tmp_path / f"precision-{preset}" / "pairs.json").write_text(json.dumps({"steps": {"each": each}}))
    monkeypatch.setattr(sys, "argv", ["precision.py", "--pool", "catch-a3c", "pong-fast"])
    assert precision.main() == 0
    said = capsys.readouterr().out
    assert "2 of catch-a3c, 1 of pong-fast: geometric mean 1.000, 95 % interval 0.179 to 5.5" in said
    monkeypatch.setattr(sys, "argv", ["precision.py", "--pool", "catch-a3c", "pong-a3c"])
    with pytest.raises(SystemExit) as ended:
        precision.main()
    assert ended.value.code == 2
    assert "--pool pong-a3c is not allowed" in capsys.readouterr().err


@pytest.mark.parametrize(("preset", "rollouts"), [("catch-a3c", 2), ("pong-appo", 1)])
def test_gradients_are_compared_at_each_snapshot(
    precision: ModuleType, preset: str, rollouts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if preset.startswith("pong"):
        pytest.importorskip("ale_py")
    for name, value in {"ENVS": 4, "WARM_UP": 1}.items():
        monkeypatch.setattr(precision, name, value)
    seen: list[tuple[Learner, Rollout, torch.Tensor]] = []
    taken = precision.gradient

    def watched(learner: Learner, rollout: Rollout) -> torch.Tensor:
        seen.append((learner, rollout, learner.replica.vector.clone()))
        found: torch.Tensor = taken(learner, rollout)
        return found

    monkeypatch.setattr(precision, "gradient", watched)
    config = replace(base_config(preset), precision="fp32", seed=1)
    start = fresh(config).state.vector.clone()
    later = start + 0.02 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    said = precision.compare(config, [(0, start), (1000, later)], 8, rollouts)
    assert [each["agent_steps"] for each in said] == [0, 1000]
    assert all(0.99 < each["cosine"] < 1 for each in said)
    assert all(each["length"] == pytest.approx(1, abs=0.1) for each in said)
    assert [learner.replica.model.trunk.bf16 for learner, *_ in seen] == [False, True] * 2 * rollouts
    assert all(rollout.memo is None for _, rollout, _ in seen)
    for (*_, vector), expected in zip(seen, [start] * 2 * rollouts + [later] * 2 * rollouts, strict=True):
        assert torch.equal(vector, expected)
    assert len(seen[0][1].reward) == 8
    assert seen[-1][0].replica.counters.steps == 1000


@pytest.mark.parametrize(("cosine", "word", "code"), [(0.9995, "ok", 0), (0.99, "FAIL", 1), (math.nan, "FAIL", 1)])
def test_one_gradient_that_points_elsewhere_fails(
    precision: ModuleType,
    cosine: float,
    word: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [{"agent_steps": 1, "cosine": each, "length": 1.0} for each in (1.0, cosine, 1.0)]
    monkeypatch.setattr(precision, "snapshots", lambda *_: [])
    monkeypatch.setattr(precision, "compare", lambda *_: found)
    assert precision.gradients("catch-a3c", 3, 10, 20, 1, tmp_path) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(word)
    assert np.isclose(json.loads((tmp_path / "gradients-1x20.json").read_text())["points"][0]["cosine"], 1)


def test_snapshots_are_spread_over_the_run(precision: ModuleType) -> None:
    config = replace(base_config("catch-a3c"), transport="inline", steps=10_000, envs=4, rollout=5)
    found = precision.snapshots(config, 4, 400)
    assert [steps // 100 for steps, _ in found] == [1, 2, 3, 4]
    assert all(steps % 100 < 20 for steps, _ in found)  # a rollout
    assert not any(torch.equal(one, two) for (_, one), (_, two) in pairwise(found))
