"""A run from end to end, and what it leaves behind."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from torch import Tensor, nn

import polyactor as pa
from polyactor.algorithms import A2C
from polyactor.cli import main as cli
from polyactor.errors import WorkerFailed
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from tests.helpers.runs import ROW, STEPS, B, Quiet, T, events, train

SUMMARY = {
    "status", "agent_steps", "updates", "games", "games_per_worker", "wall_s", "steps_per_s", "score_mean100",
    "best_score_mean100", "reached_at_steps", "reached_at_s", "seed", "versions", "cpu",
}  # fmt: skip


def test_the_run_directory(finished: pa.Run) -> None:
    names = {path.name for path in finished.path.iterdir()}
    of_tensorboard = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(of_tensorboard) == 1
    assert names - of_tensorboard == {
        "config.json", "metrics.jsonl", "summary.json", "events.jsonl", "checkpoints", "curve.png", "replay.mp4",
    }  # fmt: skip
    assert (finished.path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (finished.path / of_tensorboard.pop()).stat().st_size > 1_000


def test_summary_and_config(finished: pa.Run) -> None:
    summary = json.loads((finished.path / "summary.json").read_text())
    assert SUMMARY <= set(summary) <= SUMMARY | {"confirmation_score"}
    assert summary == json.loads(json.dumps(finished.summary))
    assert finished.status == summary["status"] == "done"
    assert summary["seed"] == 5
    assert summary["reached_at_steps"] is summary["reached_at_s"] is None
    assert set(summary["versions"]) == {"python", "torch", "gymnasium", "polyactor"}
    last = read_rows(finished.path / "metrics.jsonl")[-1]
    assert all(summary[key] == last[key] for key in ("agent_steps", "updates", "games", "score_mean100"))
    config = json.loads((finished.path / "config.json").read_text())
    assert (config["env"], config["steps"], config["seed"]) == ("CartPole-v1", STEPS, 5)
    assert (config["algorithm"]["name"], config["scheme"]["name"]) == ("a2c", "sync")


def test_a_hogwild_run_leaves_the_same(tmp_path: Path) -> None:
    run = train(tmp_path / "run", env=Quiet, scheme="hogwild", workers=1, steps=400, per_worker=("optimizer.lr=.002",))
    rows = read_rows(run.path / "metrics.jsonl")
    assert all(list(row) == ROW for row in rows)
    assert rows[-1]["learning_rate"] == 0.002
    assert rows[-1]["score_mean100"] == pytest.approx(rows[-1]["length_mean100"])
    assert run.status == "done"
    assert 400 <= run.summary["agent_steps"] < 400 + T * B
    assert events(run.path, "video_skipped")
    assert events(run.path, "checkpoint_saved")[-1]["reason"] == "", "a worker that is gone was waited for"


@pytest.mark.parametrize("trouble", [OSError("the encoder broke"), RuntimeError("no encoder"), BrokenPipeError()])
def test_a_film_that_cannot_be_made_fails_no_run(
    trouble: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_frames(*_: Any, **__: Any) -> Iterator[None]:
        raise trouble
        yield

    monkeypatch.setattr("imageio_ffmpeg.write_frames", write_frames)
    run = train(tmp_path / "run", steps=100)
    assert run.status == "done"
    assert events(run.path, "video_skipped")[0]["reason"] == (str(trouble) or "BrokenPipeError")
    assert not events(run.path, "failed")


MINE = """
from dataclasses import dataclass
from polyactor.algorithms import A2C, ACER

@dataclass(frozen=True)
class SaysV(A2C):
    pass

@dataclass(frozen=True)
class SaysQ(ACER):
    pass
"""


@pytest.mark.parametrize("name", ["SaysV", "SaysQ"])
def test_a_run_of_an_algorithm_from_a_file_ends_well_and_can_be_played(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    algorithm = f"{tmp_path / 'mine.py'}:{name}"
    run = pa.train(algorithm, env="CartPole-v1", scheme="sync", steps=200, out=tmp_path / "run", quiet=True)
    assert run.status == "done"
    assert (run.path / "replay.mp4").is_file()
    assert cli.run(["evaluate", str(run.path), "--games", "2"]) == 0
    assert pa.load(run.path).act(np.zeros(4, np.float32)) in (0, 1)
    assert pa.resume(run.path, steps=400, algorithm=algorithm, quiet=True).status == "done"


def test_an_algorithms_file_takes_no_modules_place(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text(MINE)
    algorithm = f"{tmp_path / 'statistics.py'}:SaysV"
    values = {"env": "polyactor/Chain-v0", "scheme": "hogwild", "workers": 1, "evaluate_every": 100, "quiet": True}
    run = pa.train(algorithm, **values, steps=200, out=tmp_path / "run")  # workers are sent it, too
    assert sys.modules["statistics"] is statistics
    assert run.status == "done"
    assert events(run.path, "evaluation")
    assert checkpoint.load(run.path).meta["config"]["algorithm"]["name"] == algorithm


def test_a_run_too_short_for_a_game_is_done_all_the_same(tmp_path: Path) -> None:
    run = pa.train("a2c", env="CartPole-v1", steps=4, envs=2, rollout=2, out=str(tmp_path / "run"), quiet=True)
    assert (run.status, run.summary["games"]) == ("done", 0)
    assert not (run.path / "curve.png").exists()
    assert "curve_skipped" in (run.path / "events.jsonl").read_text()


class Leaving(nn.Linear):
    """A torso that ends the process, as a script would, at its 60th batch."""

    batches = 0

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(*space.shape, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        if self.batches == 60:
            sys.exit(0)
        return super().forward(x)


@dataclass(frozen=True)
class Lossless(A2C):
    def loss(self, *_: Any) -> Any:
        sys.exit()


THREADS = {"scheme": {"name": "hogwild", "workers_as": "thread"}, "workers": 1}
LEFT: list[Any] = [
    (A2C(), {"model": {"torso": Leaving}}, RuntimeError, "code of your own raised SystemExit: 0"),
    (Lossless(), {"scheme": "sync"}, RuntimeError, "code of your own raised SystemExit, "),
    (Lossless(), {"scheme": "actor-learner", "workers": 1, "transport": "inline"}, RuntimeError, "raised SystemExit, "),
    (Lossless(), THREADS, WorkerFailed, "SystemExit"),
    *[
        pytest.param(Lossless(), {"scheme": scheme, "workers": 1}, WorkerFailed, "SystemExit", marks=pytest.mark.slow)
        for scheme in ("hogwild", "param-server")
    ],
]


@pytest.mark.parametrize(("algorithm", "values", "kind", "words"), LEFT)
def test_code_of_ones_own_that_exits_fails_the_run(
    algorithm: Any, values: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"env": "polyactor/Chain-v0", "steps": 4_000, "envs": 2, "rollout": 4, "quiet": True}
    with pytest.raises(kind, match=words):
        pa.train("a2c", algorithm=algorithm, **given, out=tmp_path / "run", **values)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert words in events(tmp_path / "run", "failed")[0]["reason"]


LEAVES = """
import sys
from dataclasses import dataclass
from polyactor.algorithms import A2C

@dataclass(frozen=True)
class Leaves(A2C):
    def {method}(self, **_):
        sys.exit(0)
"""


@pytest.mark.parametrize("method", ["suits", "__post_init__"])
def test_an_exit_before_a_run_is_an_error(method: str, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES.format(method=method))
    given = ["--env", "polyactor/Chain-v0", "--scheme", "sync", "--steps", "20", "--out", str(tmp_path / "run")]
    with pytest.raises(RuntimeError, match="raised SystemExit: 0"):
        cli.run(["train", f"{tmp_path}/leaves.py:Leaves", *given])
    with pytest.raises(RuntimeError, match="raised SystemExit: 0"):
        pa.train(
            f"{tmp_path}/leaves.py:Leaves", env="polyactor/Chain-v0", scheme="sync", steps=20, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


GOES = """
import os, tempfile
import gymnasium

def make():
    os.chdir(tempfile.mkdtemp(dir=os.environ["ELSEWHERE"]))
    return gymnasium.make("polyactor/Chain-v0")
"""


@pytest.mark.fault("F9")
@pytest.mark.parametrize(
    ("scheme", "workers"),
    [("sync", 1), *[pytest.param(name, 2, marks=pytest.mark.slow) for name in ("hogwild", "actor-learner")]],
)
def test_everything_lies_where_it_should_whatever_an_environment_does_to_the_working_directory(
    scheme: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "goes.py").write_text(GOES)
    monkeypatch.chdir(here)
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    values: dict[str, Any] = {"scheme": scheme, "workers": workers, "steps": 400, "envs": 2, "quiet": True}
    more = {} if scheme == "sync" else {"evaluate_every": 100}
    run = pa.train("a2c", env="goes.py:make", out="run", checkpoint_every=0.0, **values, **more)
    assert (run.path, Path.cwd(), run.status) == (here / "run", here, "done")
    pa.resume("run", steps=800, trust_env=True, quiet=True)
    pa.load("run", trust_env=True)
    assert Path.cwd() == here
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]
    assert json.loads((here / "run" / "config.json").read_text())["env"] == f"{here}/goes.py:make"
    assert not events(run.path, "evaluation_failed")
    assert bool(events(run.path, "evaluation")) == bool(more)
