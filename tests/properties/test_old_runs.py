"""Runs that an older polyactor wrote are loaded, evaluated and gone on from: tests/properties/old_runs/make.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from safetensors.torch import load_file

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.training import trainer
from tests.properties.old_runs.make import RUNS, newest, outputs

HERE = Path(__file__).parent / "old_runs"
EXACT = [name for name, values in RUNS.items() if values.get("exact_resume")]


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a kept run; pictures and films of it would take most of the time."""
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])
    return Path(shutil.copytree(HERE / request.param, tmp_path / request.param))


def expected(run: Path) -> dict[str, Any]:
    noted: dict[str, Any] = json.loads((HERE / run.name / "expected.json").read_text())
    return noted


def resume(run: Path, **more: Any) -> pa.Run:
    if "self" in run.name:
        more["algorithm"] = f"{HERE / 'self_imitation.py'}:SelfImitation"
    return pa.resume(run, steps=expected(run)["steps"], quiet=True, **more)


@pytest.mark.parametrize("old", RUNS, indirect=True)
def test_its_policy_answers_as_it_did(old: Path) -> None:
    """Equal but for the order of sums, which is another on another CPU."""
    now, then = torch.tensor(outputs(old)), torch.tensor(expected(old)["outputs"])
    assert now.shape == then.shape
    assert (now - then).norm() <= 1e-6 * then.norm()


@pytest.mark.parametrize("old", RUNS, indirect=True)
def test_it_is_evaluated(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(old), "--games", "2"]) == 0
    assert capsys.readouterr().out.count("2 games") == 2


@pytest.mark.parametrize("old", RUNS, indirect=True)
def test_it_goes_on(old: Path) -> None:
    """With everything that it had: θ moves on from where it was, and what was counted is counted further."""
    before, meta = load_file(newest(old)), json.loads((old / "summary.json").read_text())
    run = resume(old)
    after = load_file(newest(old))
    assert run.status == "done"
    assert run.summary["agent_steps"] >= expected(old)["steps"]
    assert run.summary["updates"] > meta["updates"]
    assert run.summary["games"] > meta["games"]
    assert after.keys() == before.keys()
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"model", "optimizer"} <= moved
    for name in after:
        if name.endswith((".count", ".step")):
            assert (after[name] > before[name]).all(), name
    for memory in old.glob("replay/*/added.bin"):
        rollouts, then = (np.fromfile(each, np.int64) for each in (memory, HERE / memory.relative_to(old.parent)))
        assert (rollouts > then).all()
    rows = [json.loads(line)["agent_steps"] for line in (old / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    assert rows[0] < meta["agent_steps"] < rows[-1]


@pytest.mark.parametrize("old", EXACT, indirect=True)
def test_with_exact_resume_it_becomes_what_it_became_then(old: Path) -> None:
    """Random streams are integers and the same everywhere; sums of floats may come in another order on another CPU."""
    resume(old)
    now, then = load_file(newest(old)), load_file(HERE / old.name / "resumed.safetensors")
    assert now.keys() == then.keys()
    for name in then.keys() - {"carried.actor.envs"}:  # as text, whose length is that of its numbers' last digits
        torch.testing.assert_close(
            now[name], then[name], rtol=1e-4, atol=1e-5, msg=lambda why, name=name: f"{name}: {why}"
        )


def test_an_algorithm_of_a_file_is_named_to_go_on(tmp_path: Path) -> None:
    """A config alone loads no code."""
    run = shutil.copytree(HERE / "self-imitation", tmp_path / "run")
    with pytest.raises(pa.PolyactorError, match="self_imitation"):
        pa.resume(run, steps=600, quiet=True)


@pytest.mark.parametrize("builder", [SdistBuilder, WheelBuilder])
def test_what_is_published_holds_the_package_and_no_runs(builder: Any) -> None:
    root = HERE.parents[2]
    files = [Path(each.path).relative_to(root) for each in builder(str(root)).recurse_included_files()]
    assert Path("src/polyactor/__init__.py") in files
    assert not [path for path in files if path.parts[0] in ("tests", "results", "benchmarks", "runs")]
