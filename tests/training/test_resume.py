"""A run goes on from exactly what was saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyactor as pa
from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.config import Config
from polyactor.errors import CheckpointError, UsageError
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from tests.helpers.directories import digest
from tests.helpers.fresh import fresh
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import STEPS, B, Quiet, T, events, train


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, dict[str, torch.Tensor], Any]]:
    """What a `sync` run is handed as it starts: its config and copies of its state and counters."""
    seen: list[tuple[Config, dict[str, torch.Tensor], Any]] = []
    original = transport.run

    def run(parts: Parts, *tell: Any) -> Any:
        tensors = {name: tensor.clone() for name, tensor in parts.state.tensors().items()}
        seen.append((parts.config, tensors, parts.counters.table.copy()))
        return original(parts, *tell)

    monkeypatch.setattr(transport, "run", run)
    return seen


def test_resume_starts_from_exactly_what_was_saved(copy: Path, starts: list[Any]) -> None:
    saved = checkpoint.load(copy)
    rows = read_rows(copy / "metrics.jsonl")
    before = json.loads((copy / "summary.json").read_text())
    run = pa.resume(copy, steps=STEPS + 1_000, quiet=True)

    config, tensors, counters = starts[0]
    assert config.steps == STEPS + 1_000
    assert config.seed == 5
    assert {f"optimizer.0.{name}" for name in ("step", "exp_avg", "exp_avg_sq")} <= set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, saved.tensors[name]), name
    assert counters[0, Counter.STEPS] == before["agent_steps"]
    assert counters[0, Counter.UPDATES] == before["updates"] == int(tensors["optimizer.0.step"])
    assert counters[0, Counter.GAMES] == before["games"]

    more = read_rows(copy / "metrics.jsonl")
    assert more[: len(rows)] == rows
    first = more[len(rows)]
    for key in ("agent_steps", "updates", "wall_s"):
        assert first[key] > rows[-1][key]
    assert first["games"] >= rows[-1]["games"]
    assert run.status == "done"
    assert STEPS + 1_000 <= run.summary["agent_steps"] < STEPS + 1_000 + T * B
    after = checkpoint.load(copy)
    assert after.tensors["optimizer.0.step"] == run.summary["updates"]
    new_games = run.summary["games"] - before["games"]
    assert 0 < new_games < 100
    assert after.meta["scores"][:-new_games] == saved.meta["scores"][new_games:]
    assert len(after.meta["scores"]) == 100


def test_a_checkpoint_that_an_error_advises_is_one_of_the_same_run(copy: Path) -> None:
    good, rows = checkpoint.load(copy), read_rows(copy / "metrics.jsonl")
    pa.resume(copy, steps=STEPS + 200, quiet=True)
    (checkpoint.load(copy).path / checkpoint.META).write_text("damaged")
    with pytest.raises(CheckpointError, match="newest good checkpoint") as caught:
        pa.resume(copy)
    advised = Path(str(caught.value).rpartition(": ")[2].rstrip(")"))
    assert advised == good.path
    files = {path.name for path in copy.iterdir() if not path.name.startswith("events.out")}
    run = pa.resume(advised, steps=STEPS + 400, quiet=True)
    assert (run.path, run.status) == (copy, "done")
    assert events(copy, "resumed")[-1]["agent_steps"] == good.meta["agent_steps"]
    steps = [row["agent_steps"] for row in read_rows(copy / "metrics.jsonl")]
    assert steps[: len(rows)] == [row["agent_steps"] for row in rows]
    assert steps == sorted(set(steps))
    assert checkpoint.load(copy).meta["agent_steps"] >= STEPS + 400
    assert {path.name for path in copy.iterdir() if not path.name.startswith("events.out")} == files


def test_a_checkpoint_by_itself_is_where_it_goes_on(copy: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(checkpoint.load(copy).path, tmp_path / "checkpoints" / "000000004000"))
    assert pa.resume(alone, steps=STEPS + 100, quiet=True).path == alone
    assert {path.name for path in tmp_path.iterdir()} == {"run", "checkpoints"}


def test_config_json_says_what_a_resumed_run_goes_on_with(copy: Path) -> None:
    pa.resume(copy, steps=STEPS + 100, quiet=True)
    config = json.loads((copy / "config.json").read_text())
    assert config["steps"] == STEPS + 100
    assert config == checkpoint.load(copy).meta["config"]


def test_resume_of_a_run_that_is_over_changes_nothing(copy: Path) -> None:
    saved = checkpoint.load(copy)
    run = pa.resume(copy, quiet=True)
    again = checkpoint.load(copy)
    assert again.meta["scores"] == saved.meta["scores"]
    assert again.meta["lengths"] == saved.meta["lengths"]
    assert again.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(tensor, saved.tensors[name]) for name, tensor in again.tensors.items())
    assert run.summary["agent_steps"] == saved.meta["agent_steps"]
    assert run.summary["best_score_mean100"] == saved.meta["best_score_mean100"]


def test_resume_does_not_play_the_same_games_again(tmp_path: Path) -> None:
    """The lengths of these games depend on the environments' random streams alone."""
    run = train(tmp_path / "run", env=Quiet, steps=400)
    first = checkpoint.load(run.path).meta["lengths"]
    pa.resume(run.path, steps=800, env=Quiet, quiet=True)
    both = checkpoint.load(run.path).meta["lengths"]
    assert len(both) < 100
    assert both[: len(first)] == first
    again = both[len(first) :][:10]
    assert len(again) == 10
    assert again != first[:10]


def test_init_from_copies_parameters_and_begins_at_zero(finished: pa.Run, tmp_path: Path, starts: list[Any]) -> None:
    run = train(tmp_path / "run", init_from=str(finished.path), steps=100, seed=6)
    _, tensors, counters = starts[0]
    source = checkpoint.load(finished.path, tag="best").tensors
    begun = fresh(replace(base_config("a2c", env="CartPole-v1"), seed=6)).state.tensors()
    for name, tensor in tensors.items():
        if name.startswith("model."):
            assert torch.equal(tensor, source[name]), name
        else:
            assert torch.equal(tensor, begun[name]), name
    assert not counters.any()
    assert 100 <= run.summary["agent_steps"] < 100 + T * B


def test_init_from_another_model_leaves_no_directory(finished: pa.Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is of another model"):
        train(tmp_path / "run", init_from=str(finished.path), model={"hidden": (7,)})
    assert not (tmp_path / "run").exists()


def test_init_from_does_not_take_the_same_tensors_for_others(tmp_path: Path) -> None:
    small: Any = {"env": "Pendulum-v1", "steps": 16, "envs": 1, "max_episode_steps": 8, "quiet": True}
    theirs = {"norm": "weight", "log_std": "state"}
    run = pa.train("a2c", model=theirs, out=str(tmp_path / "theirs"), **small)
    for name, other in (("norm is weight", {"norm": "none"}), ("distribution is gaussian", {"distribution": "beta"})):
        with pytest.raises(CheckpointError, match=rf"is of another model: its --model\.{name}"):
            pa.train("a2c", model=theirs | other, init_from=str(run.path), out=str(tmp_path / "ours"), **small)


@pytest.mark.parametrize("method", mostly_slow(["a3c-server", "appo"], fast=["appo"]))
def test_a_run_is_saved_drawn_and_gone_on_with(method: str, tmp_path: Path) -> None:
    run = pa.train(method, env="CartPole-v1", workers=1, envs=2, steps=600, out=str(tmp_path / "run"), quiet=True)
    assert run.status == "done"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["policy_lag"] is not None and row["gradient_staleness"] is not None for row in rows)
    assert (run.path / "curve.png").exists()
    more = pa.resume(run.path, steps=1_200, quiet=True)
    assert more.summary["agent_steps"] >= 1_200
    assert more.summary["updates"] > run.summary["updates"]


def test_an_algorithm_that_is_not_from_a_file_is_not_replaced(copy: Path) -> None:
    with pytest.raises(UsageError, match="--algorithm ppo is not allowed: the run goes on with its own algorithm, a2c"):
        pa.resume(copy, algorithm="ppo", quiet=True)
    with pytest.raises(UsageError, match=r"algorithm .* is not allowed: it must be a text or none"):
        pa.resume(copy, algorithm=pa.PPO, quiet=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="trust_env no is not allowed: it must be true or false"):
        pa.resume(copy, trust_env="no", quiet=True)  # type: ignore[arg-type]


@pytest.mark.fault("F11")
def test_a_total_that_is_reached_is_refused_and_a_longer_schedule_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"optimizer": {"lr": 0.5, "lr_end": 0.0}, "algorithm": {"entropy_coef": 0.25, "entropy_coef_end": 0.0}}
    run = train(tmp_path / "run", env="polyactor/Chain-v0", steps=400, model={"hidden": (4,)}, **given)
    before = digest(run.path)
    for steps in (100, 399):
        with pytest.raises(UsageError, match=rf"--steps {steps} is not allowed: 4\d\d steps are done already"):
            pa.resume(run.path, steps=steps)
    assert digest(run.path) == before
    pa.resume(run.path, steps=np.int64(800))
    said = " ".join(capsys.readouterr().out.split())
    assert "goes on with --optimizer.lr 0.2" in said
    assert "(it was 0), --algorithm.entropy-coef 0.11" in said
    assert "stretches" in events(run.path, "started")[-1]["reason"]
