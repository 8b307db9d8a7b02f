"""A run from end to end: what it leaves behind, how it stops, how it goes on; and the policy that comes out of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter as Stats
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from fresh import fresh
from gymnasium import spaces
from marks import mostly_slow

import polyactor as pa
from polyactor import transport
from polyactor.agent.actor import Actor
from polyactor.agent.parts import Parts, make_model
from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.cli import main as cli
from polyactor.config import Config
from polyactor.envs import env_spec, make_envs
from polyactor.errors import CheckpointError, EnvironmentUnsupported
from polyactor.evaluation.evaluate import evaluate, play
from polyactor.evaluation.policy import Policy, make_trained
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim.flat import State
from polyactor.report.video import record
from polyactor.settings.presets import PRESETS, base_config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from polyactor.system import machine
from polyactor.training import events as told
from polyactor.training import stats
from polyactor.training.background_eval import Evaluator
from polyactor.training.progress import Progress
from polyactor.transport.watchdog import untold, watched

SOURCE = Path(pa.__file__).parents[1]
ROW = [
    "agent_steps", "updates", "games", "games_per_worker", "wall_s", "steps_per_s", "score_mean100", "score_last",
    "length_mean100", "policy_lag", "gradient_staleness", "grad_norm", "entropy", "value_loss", "policy_loss",
    "learning_rate", "rss_mb", "updates_skipped", "worker_restarts", "env_errors",
]  # fmt: skip
SUMMARY = {
    "status", "agent_steps", "updates", "games", "games_per_worker", "wall_s", "steps_per_s", "score_mean100",
    "best_score_mean100", "reached_at_steps", "reached_at_s", "seed", "versions", "cpu",
}  # fmt: skip
STEPS, T, B = 4_000, 10, 4


class Quiet(gymnasium.Env[Any, Any]):
    """Draws nothing, so that a run of it makes no film. Reward 1 a step; games of 10, or of 5 from time to time."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 10 if self.np_random.random() < 0.8 else 5
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._observation(), 1.0, self.left == 0, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def train(out: Path, **values: Any) -> pa.Run:
    standard = {"env": "CartPole-v1", "steps": STEPS, "seed": 5, "envs": B, "rollout": T, "quiet": True}
    return pa.train("a2c", out=str(out), **(standard | values))


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_rows(run / "events.jsonl") if event["event"] == name]


def until(condition: Callable[[], bool], process: subprocess.Popen[str], deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end, f"not within {deadline} seconds"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pa.Run:
    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copy(finished: pa.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.path, tmp_path / "run"))


# ---- what a run leaves behind ------------------------------------------------------------------------------------


def test_the_run_directory(finished: pa.Run) -> None:
    names = {path.name for path in finished.path.iterdir()}
    boards = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(boards) == 1
    assert names - boards == {
        "config.json", "metrics.jsonl", "summary.json", "events.jsonl", "checkpoints", "curve.png", "replay.mp4",
    }  # fmt: skip
    assert (finished.path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (finished.path / boards.pop()).stat().st_size > 1_000


@pytest.mark.parametrize(("env", "known"), [(None, True), ("polyactor/Chain-v0", False)])
def test_the_banner_says_what_to_expect_of_a_preset(
    env: str | None, known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa.train("cartpole-a2c", env=env, steps=200, out=str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert (f"to expect, as measured on two cores: {PRESETS['cartpole-a2c'].measured}" in said) == known


@pytest.mark.fault("P9")
@pytest.mark.parametrize(("there", "low"), [(10**6, 0), (2, 1)])
def test_it_says_how_much_memory_it_takes_and_whether_that_is_nearly_all(
    there: int, low: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(told, "memory_mb", lambda: there)
    run = pa.train("a2c", env="polyactor/Chain-v0", steps=1_000, out=tmp_path / "run")
    said = capsys.readouterr().out
    rows = read_rows(run.path / "metrics.jsonl")
    assert said.count(f"takes {rows[1]['rss_mb']:,.0f} MiB of memory, of {there:,.0f} MiB here") == 1
    assert said.count("memory low: ") == low
    assert [each["event"] for each in read_rows(run.path / "events.jsonl")].count("memory_low") == low


def test_memory_is_the_machines_or_what_a_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", files)
    whole = machine.memory_mb()
    assert whole > 256
    files[0].write_text("max\n")
    assert machine.memory_mb() == whole
    files[1].write_text(f"{100 * 2**20}\n")
    assert machine.memory_mb() == 100


def test_rows_have_the_documented_keys_in_order(finished: pa.Run) -> None:
    rows = read_rows(finished.path / "metrics.jsonl")
    assert all(list(row) == ROW for row in rows)
    assert 50 <= len(rows) <= 201  # at most 200, each at an update, and the last
    for key in ("agent_steps", "updates", "games", "wall_s"):
        values = [row[key] for row in rows]
        assert values == sorted(values)
    last = rows[-1]
    assert STEPS <= last["agent_steps"] < STEPS + T * B
    assert all(isinstance(last[key], int | float) for key in ROW if key != "games_per_worker")
    assert last["games_per_worker"] == [last["games"]]
    assert last["policy_lag"] == last["gradient_staleness"] == 0  # sync has neither
    assert last["score_last"] == pytest.approx(round(last["score_last"]))  # CartPole pays 1 a step, whole games count
    assert last["score_mean100"] == pytest.approx(last["length_mean100"])
    assert last["rss_mb"] > 50


def test_a_slow_run_reports_with_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "ROWS", 1)
    run = pa.train("a2c", env="CartPole-v1", steps=4_000, out=str(tmp_path / "run"), quiet=True, checkpoint_every=0.0)
    rows = read_rows(run.path / "metrics.jsonl")
    assert len(rows) > 10  # one, but for the checkpoints: it looks and saves after each update
    assert [row["agent_steps"] for row in rows] == sorted({row["agent_steps"] for row in rows})


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


def test_events_have_a_time_and_a_reason(finished: pa.Run) -> None:
    happened = read_rows(finished.path / "events.jsonl")
    assert all(list(event)[:3] == ["time", "event", "reason"] for event in happened)
    assert [event["event"] for event in happened] == ["started", "stopping", "checkpoint_saved"]


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


# ---- going on ----------------------------------------------------------------------------------------------------


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


# ---- ends --------------------------------------------------------------------------------------------------------


def test_a_score_that_is_reached_is_confirmed(tmp_path: Path) -> None:
    run = train(tmp_path / "run", stop_at=15.0, steps=200_000)
    assert run.status == "reached"
    assert run.summary["confirmation_score"] >= 15
    assert run.summary["score_mean100"] >= 15
    assert run.summary["games"] >= 100
    assert run.summary["reached_at_steps"] == run.summary["agent_steps"] < 50_000
    assert 0 < run.summary["reached_at_s"] <= run.summary["wall_s"]
    (confirmation,) = events(run.path, "confirmation")
    assert confirmation["evaluation_score"] == run.summary["confirmation_score"]
    assert checkpoint.load(run.path, tag="best").path == checkpoint.load(run.path).path


def test_time_spent_on_fresh_games_is_no_part_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, counters = [1_000.0], SharedCounters(1)
    monkeypatch.setattr(stats.time, "monotonic", lambda: now[0])
    known = stats.Stats(base_config("a2c", env="CartPole-v1"), counters, {})
    for seconds, apart in ((10.0, 0.0), (40.0, 30.0)):
        counters.count(0, Counter.STEPS, 1_000)
        now[0] += seconds
        known.apart(apart)
        assert known.report(due=True)["steps_per_s"] == 100.0
    assert known.wall == 50.0


def test_a_score_that_fresh_games_do_not_confirm_is_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyactor.evaluation.evaluate import Evaluation

    worse = Evaluation((14.0,) * 100, (14,) * 100, 0, 0, False)
    monkeypatch.setattr("polyactor.training.target_score.evaluate_on_all_cores", lambda *_, **__: worse)
    run = train(tmp_path / "run", stop_at=15.0)
    assert run.status == "done"
    assert run.summary["reached_at_steps"] is None
    assert events(run.path, "confirmation")[0]["evaluation_score"] == 14


@pytest.mark.fault("P6")
def test_a_signal_ends_the_games_that_would_confirm_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyactor.evaluation import evaluate as evaluation

    original = evaluation.play

    def asked(*given: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        found = original(*given, **more)
        assert len(found.scores) < 50  # of 100: they have hardly begun
        return found

    monkeypatch.setattr(evaluation, "play", asked)
    run = train(tmp_path / "run", stop_at=15.0)
    assert run.status == "stopped"
    assert not events(run.path, "confirmation")
    monkeypatch.undo()
    assert pa.resume(run.path, quiet=True).status == "reached"


@pytest.mark.alone
@pytest.mark.fault("P6")
def test_a_signal_ends_the_wait_for_workers_before_games_that_would_confirm_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, waited = transport.paused, []

    @contextmanager
    def paused(*given: Any, **more: Any) -> Iterator[bool]:
        pid = events(tmp_path / "run", "worker_started")[0]["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that it does not heed the pause
        os.kill(os.getpid(), signal.SIGTERM)
        start = time.monotonic()
        with original(*given, **more) as heeded:
            waited.append(time.monotonic() - start)
            os.kill(pid, signal.SIGCONT)
            yield heeded

    monkeypatch.setattr(transport, "paused", paused)
    run = train(tmp_path / "run", env=Quiet, scheme="hogwild", workers=2, stop_at=8.0, steps=1_000_000)
    assert run.status == "stopped"
    assert len(waited) == 1
    assert waited[0] < 5.0  # of 30


class Sleeper(Quiet):
    """Sleeps in the step after somebody has said so, and once more when it is closed for that."""

    tired = False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if Sleeper.tired:
            Sleeper.tired, self.slept = False, True
            time.sleep(60.0)
        return super().step(action)

    def close(self) -> None:
        if getattr(self, "slept", False):
            time.sleep(60.0)


@pytest.mark.alone
@pytest.mark.fault("P4")
def test_an_environment_that_hangs_while_a_score_is_confirmed_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyactor.evaluation import evaluate as evaluation

    original, found = evaluation.play, []

    def disturbed(*given: Any, **more: Any) -> Any:
        Sleeper.tired = True
        found.append(original(*given, **more))
        return found[-1]

    monkeypatch.setattr(evaluation, "play", disturbed)
    began = time.monotonic()
    run = train(tmp_path / "run", env=Sleeper, stop_at=8.0, env_timeout=0.5)
    assert run.status == "reached"
    assert found[-1].lost == 1
    assert time.monotonic() - began < 30.0


def test_nobody_watches_any_more_when_the_games_are_over() -> None:
    """A thread that wakes while the interpreter ends would abort the process."""
    for _ in range(20):
        with watched(base_config("a2c", env=Quiet), SharedCounters(1), untold):
            pass
        assert "polyactor-watchdog" not in [thread.name for thread in threading.enumerate()]


def test_an_environment_does_not_hang_while_the_policy_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    config, step, steps = base_config("a2c", env=Quiet), ActorCritic.step, count()

    def slow(*given: Any) -> Any:
        time.sleep(0.7 if next(steps) == 3 else 0.0)
        return step(*given)

    monkeypatch.setattr(ActorCritic, "step", slow)
    tensors = fresh(config).state.views()
    found = evaluate(replace(config, env_timeout=0.3), tensors, games=2, seed=0)
    assert len(found.scores) == 2
    assert not found.lost


@pytest.mark.fault("P6")
def test_a_signal_ends_the_film_of_a_run_that_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make_trained

    def asked(*given: Any) -> Any:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    monkeypatch.setattr("polyactor.report.video.make_trained", asked)
    run = train(tmp_path / "run", steps=500)
    assert run.status == "done"
    assert events(run.path, "video_skipped")[0]["reason"] == "a signal asked for the end"
    assert not (run.path / "replay.mp4").exists()


@pytest.mark.alone
@pytest.mark.fault("P6")
def test_a_signal_ends_the_wait_for_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never_done(self: Evaluator, timeout: float = 0.0) -> None:
        if timeout > 0:  # so the run is over, and waits
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Evaluator, "poll", never_done)
    began = time.monotonic()
    run = train(tmp_path / "run", env=Quiet, evaluate_every=1_000)
    assert run.status == "done"
    assert checkpoint.load(run.path).meta["agent_steps"] == run.summary["agent_steps"] >= STEPS
    assert time.monotonic() - began < 30.0


def test_workers_wait_while_the_state_is_copied_and_not_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards: list[SharedCounters] = []
    words: dict[str, list[int]] = {"copied": [], "written": []}

    def noted(moment: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            words[moment].append(int(boards[0]._word[0]))
            if moment == "written" and len(words[moment]) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*given, **more)

        return call

    def counters(*given: Any) -> SharedCounters:
        boards.append(SharedCounters(*given))
        return boards[0]

    monkeypatch.setattr("polyactor.agent.parts.SharedCounters", counters)
    monkeypatch.setattr(State, "tensors", noted("copied", State.tensors))
    monkeypatch.setattr("polyactor.training.checkpointing.checkpoint.save", noted("written", checkpoint.save))
    config = {"env": Quiet, "scheme": "hogwild", "workers": 2, "steps": 10**9, "checkpoint_every": 0.2}
    assert train(tmp_path / "run", **config).status == "stopped"
    assert len(words["written"]) >= 2
    assert words["copied"][0] > 0  # the number of a pause
    assert words["written"][0] == 0


def test_a_score_out_of_reach_is_not_reached(tmp_path: Path) -> None:
    run = train(tmp_path / "run", env=Quiet, stop_at=11.0)
    assert run.summary["games"] >= 100
    assert run.status == "done"
    assert run.summary["reached_at_steps"] is None
    assert not events(run.path, "confirmation")


def test_evaluations_go_on_beside_training_and_keep_the_best(tmp_path: Path) -> None:
    run = train(tmp_path / "run", env="polyactor/Chain-v0", evaluate_every=1_000)
    evaluations = events(run.path, "evaluation")
    assert evaluations
    assert all(1.0 <= event["evaluation_score"] <= 10.0 for event in evaluations)
    assert all(1_000 <= event["agent_steps"] <= run.summary["agent_steps"] for event in evaluations)
    best = checkpoint.load(run.path, tag="best")
    winner = max(evaluations, key=lambda event: event["evaluation_score"])
    assert best.meta["agent_steps"] == winner["agent_steps"]
    policy = pa.load(run.path)
    assert torch.equal(policy.model.value.weight, best.tensors["model.value.weight"])


def test_an_environment_that_no_checkpoint_can_name_is_evaluated_beside_training(tmp_path: Path) -> None:
    games = partial(gymnasium.make, "polyactor/Chain-v0")
    for i, env in enumerate((lambda: games(), games)):
        run = train(tmp_path / f"run{i}", env=env, steps=2_000, evaluate_every=1_000)
        assert events(run.path, "evaluation")
        assert not events(run.path, "evaluation_failed")


def test_an_evaluation_that_fails_is_told_of_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, here = threading.Lock(), os.getpid()

    def unsendable() -> Any:
        with lock:
            return Quiet()

    def elsewhere() -> Any:
        if os.getpid() != here:
            raise ValueError("not here")
        return Quiet()

    for name, env, why in (("a", unsendable, "cannot pickle"), ("b", elsewhere, "not here")):
        run = train(tmp_path / name, env=env, steps=2_000, evaluate_every=1_000, quiet=False)
        failed = events(run.path, "evaluation_failed")
        assert run.status == "done"
        assert not events(run.path, "evaluation")
        assert why in failed[0]["reason"]
        assert failed[0]["agent_steps"] >= 1_000
        said = " ".join(capsys.readouterr().out.split())
        assert "evaluation failed: " in said
        assert why in said


@pytest.mark.fault("P6")
@pytest.mark.parametrize("preset", mostly_slow(["a2c", "a3c"], fast=["a3c"]))
def test_sigterm_saves_and_exits_75_and_resume_goes_on(tmp_path: Path, preset: str) -> None:
    out = tmp_path / "run"
    flags = f"--env polyactor/Chain-v0 --steps 1000000 --workers 1 --envs {B} --rollout {T} --quiet --out {out}"
    with program("-m", "polyactor", "train", preset, *flags.split()) as process:
        until(lambda: bool(read_rows(out / "metrics.jsonl")), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert 5_000 <= summary["agent_steps"] < 1_000_000
    saved = checkpoint.load(out)
    assert int(saved.tensors["board.counters"][0, Counter.STEPS]) == summary["agent_steps"]
    run = pa.resume(out, steps=summary["agent_steps"] + 200, quiet=True)
    assert run.status == "done"
    assert summary["agent_steps"] + 200 <= run.summary["agent_steps"] < summary["agent_steps"] + 200 + T * B


def test_a_run_outlives_whoever_read_its_output(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = f"--env polyactor/Chain-v0 --steps 2000 --workers 1 --envs {B} --rollout {T} --out {out}"
    with program("-m", "polyactor", "train", "a2c", *flags.split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, "")
    assert json.loads((out / "summary.json").read_text())["status"] == "done"


def test_lines_that_nobody_reads_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(("agent_steps", "games", "steps_per_s"), 1) | dict.fromkeys(
        ("score_mean100", "gradient_staleness")
    )
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        progress = Progress("", 10, quiet=False)
        progress.next_line = 0.0
        progress.show(row, new=False)
        progress.say("done")
        monkeypatch.undo()


STUBBORN = """
import time, gymnasium, numpy as np
from gymnasium import spaces
from pathlib import Path

class Env(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        while self.steps > 20:  # never answers again, but is alive
            with open("beats", "a") as file:
                file.write(".")
            time.sleep(0.01)
        return np.zeros(1, np.float32), 0.0, False, False, {}
"""


@pytest.mark.fault("P6")
@pytest.mark.parametrize(
    ("second", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals, code: int) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    beats = tmp_path / "beats"

    def beat() -> int:
        return beats.stat().st_size if beats.exists() else 0

    flags = "--env stubborn:Env --envs 1 --rollout 5 --quiet --out run"
    with program("-m", "polyactor", "train", "a2c", *flags.split(), cwd=tmp_path) as process:
        until(lambda: beat() > 0, process)
        process.send_signal(signal.SIGTERM)
        seen = beat()
        until(lambda: beat() > seen + 5, process)  # the first was taken note of, and did not end it
        process.send_signal(second)
        assert process.wait(10) == code


@contextmanager
def program(*args: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, *args],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


# ---- the policy --------------------------------------------------------------------------------------------------


def config_of(env: Any, **values: Any) -> Config:
    kind = env if isinstance(env, str) else "polyactor/Chain-v0"
    return replace(base_config("a2c", env=kind), env=env, model=ModelSpec(hidden=(8,)), **values)


def untrained(env: Any, model: ModelSpec | None = None) -> Policy:
    config = config_of(env)
    config = config if model is None else replace(config, model=model)
    tensors = {name: tensor.clone() for name, tensor in fresh(config).state.views().items()}
    for name, tensor in tensors.items():
        if name.startswith("policy."):
            tensor.mul_(300.0).add_(0.1)  # far from the near-uniform start, so that actions leave their bounds
    return Policy(config, tensors)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "polyactor/LQR-v0"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_act_gives_what_the_environment_takes(env_id: str, deterministic: bool) -> None:
    policy, env = untrained(env_id), gymnasium.make(env_id)
    observation, _ = env.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(30):
        action = policy.act(observation, deterministic=deterministic)
        assert env.action_space.contains(action), action
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
            policy.reset()


def test_a_loaded_policy_acts_as_the_run_did(finished: pa.Run) -> None:
    policy = pa.load(finished.path)
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.act(observation))
    best = checkpoint.load(finished.path, tag="best")
    model = make_model(policy.config, env_spec("CartPole-v1"))
    with torch.inference_mode():
        for name, tensor in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
            tensor.copy_(best.tensors[f"model.{name}"])
        params, _ = model.step(torch.as_tensor(observation).unsqueeze(0), (), torch.tensor([True]))
    assert policy.act(observation) == int(params.argmax())


def test_memory_lasts_until_reset() -> None:
    policy = untrained("Pendulum-v1", ModelSpec(hidden=(8,), core="lstm", core_size=8))
    observation = np.array([0.1, -0.2, 0.3], np.float32)
    first, second, third = (policy.act(observation) for _ in range(3))
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    policy.reset()
    assert np.array_equal(policy.act(observation), first)
    assert np.array_equal(policy.act(observation), second)


# ---- whole games -------------------------------------------------------------------------------------------------


class Games(gymnasium.Env[Any, Any]):
    """The k-th one made plays games of 3 + k steps at k + 1 points a step."""

    made = count()

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1e9, 1e9, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.number, self.steps = next(Games.made), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps == 3 + self.number
        terminated = ended and self.number % 2 == 0  # the others are truncated: that ends a game too
        return np.full(1, self.steps, np.float32), self.number + 1.0, terminated, ended and not terminated, {}


class Endless(gymnasium.Env[Any, Any]):
    """Never ends; counts its steps, or stands still."""

    moves = True

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1e9, 1e9, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(1, self.steps * self.moves, np.float32), float(self.moves), False, False, {}


class Standing(Endless):
    moves = False


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_environment_plays_the_same_number_of_whole_games(deterministic: bool) -> None:
    policy = untrained(Games)
    Games.made = count()
    envs = make_envs(Games, 4)
    found = play(policy.model, envs, games=10, deterministic=deterministic, seed=0)
    lengths = [env.number + 3 for env in envs._envs.envs]  # type: ignore[attr-defined]
    points = {length: length * (length - 2.0) for length in lengths}
    assert Stats(found.lengths) == dict.fromkeys(lengths, 3)  # ten games, made a multiple of four
    assert all(score == points[length] for score, length in zip(found.scores, found.lengths, strict=True))
    assert found.stuck == found.capped == 0
    assert found.deterministic is deterministic
    assert found.mean == pytest.approx(sum(points.values()) / 4)


def test_evaluation_plays_the_games_that_an_actor_plays_with_the_same_parameters() -> None:
    """So a difference between a training mean and a fresh one is in the parameters or in chance."""
    model, b, per_env = untrained("CartPole-v1").model, 4, 5
    found = play(model, make_envs("CartPole-v1", b), games=b * per_env, deterministic=False, seed=3)

    streams, games = Streams.of(3, EVALUATION_STREAM), []
    actor = Actor(
        make_envs("CartPole-v1", b),
        model,
        length=7,
        seed=streams.env,
        generator=streams.act,
        gamma=0.99,
        on_game=lambda score, length: games.append((score, length)),
    )
    while len(games) < 10 * b * per_env:
        actor.collect(0)
    taken = list(zip(found.scores, found.lengths, strict=True))
    assert len(taken) == b * per_env
    assert len(set(taken)) > 5  # games differ, so equality below means something
    # An environment that has played its share goes on, so the actor's list has more games between those taken.
    rest = iter(games)
    assert all(game in rest for game in taken)
    assert games[:b] == taken[:b]


def test_a_game_where_nothing_happens_is_cut_as_stuck() -> None:
    found = play(untrained(Standing).model, make_envs(Standing, 3), games=6, deterministic=True, seed=0, stuck_after=25)
    assert (found.stuck, found.capped) == (3, 0)
    assert found.lengths == (25, 25, 25)
    assert found.scores == (0.0, 0.0, 0.0)
    assert "3 stuck" in str(found)


def test_a_game_without_end_is_cut_at_the_cap_with_its_score_so_far() -> None:
    found = play(
        untrained(Endless).model,
        make_envs(Endless, 3),
        games=3,
        deterministic=True,
        seed=0,
        max_game_steps=40,
        stuck_after=10,
    )
    assert (found.stuck, found.capped) == (0, 3)
    assert found.lengths == (40, 40, 40)
    assert found.scores == (40.0, 40.0, 40.0)
    assert "3 cut at the step limit" in str(found)


# ---- the film ----------------------------------------------------------------------------------------------------


class Painted(Games):
    """Games of 12 steps with pictures of an odd size."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.number, self.render_mode = 9, render_mode

    def render(self) -> Any:
        picture = np.zeros((33, 47, 3), np.uint8)
        picture[: self.steps * 2] = 200
        return picture


def test_a_film_shows_every_step_of_one_game(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    policy = untrained(Painted)
    out = tmp_path / "film.mp4"
    score = record(policy.config, dict(policy.model.state_dict()), out, seed=0)
    assert score == 12 * 10
    frames, seconds = ffmpeg.count_frames_and_secs(str(out))
    assert frames == 12
    assert seconds == pytest.approx(1.2, abs=0.15)
    picture = ffmpeg.read_frames(str(out))
    width, height = next(picture)["size"]
    picture.close()
    assert width % 2 == height % 2 == 0
    assert min(width, height) >= 320
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_a_film_begins_anew_where_a_game_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    step, taken = Painted.step, count(1)

    def breaks(self: Painted, action: Any) -> Any:
        if next(taken) == 5:
            raise RuntimeError("the projector jammed")
        return step(self, action)

    policy = untrained(Painted)
    monkeypatch.setattr(Painted, "step", breaks)
    out = tmp_path / "film.mp4"
    score = record(policy.config, dict(policy.model.state_dict()), out, seed=0)
    assert score == 12 * 10
    assert ffmpeg.count_frames_and_secs(str(out))[0] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]

    taken = count(4)
    monkeypatch.setattr("polyactor.report.video.MAX_GAME_STEPS", 2)  # and nothing is left to show
    with pytest.raises(EnvironmentUnsupported, match=r"was played to its end: .* the projector jammed"):
        record(policy.config, dict(policy.model.state_dict()), out)


def test_what_cannot_be_drawn_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = untrained(Endless)
    with pytest.raises(EnvironmentUnsupported, match="draws no pictures"):
        record(policy.config, dict(policy.model.state_dict()), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())

    def blind(self: Painted) -> Any:
        if self.steps == 5:
            raise RuntimeError("the paint ran out")
        return np.zeros((32, 32, 3), np.uint8)

    policy = untrained(Painted)
    monkeypatch.setattr(Painted, "render", blind)
    with pytest.raises(EnvironmentUnsupported, match="the paint ran out"):
        record(policy.config, dict(policy.model.state_dict()), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_a_run_too_short_for_a_game_is_done_all_the_same(tmp_path: Path) -> None:
    run = pa.train("a2c", env="CartPole-v1", steps=4, envs=2, rollout=2, out=str(tmp_path / "run"), quiet=True)
    assert (run.status, run.summary["games"]) == ("done", 0)
    assert not (run.path / "curve.png").exists()
    assert "curve_skipped" in (run.path / "events.jsonl").read_text()


def test_steps_made_while_a_row_is_written_belong_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring memory takes a moment, in which workers go on."""
    config = replace(base_config("a3c", env="CartPole-v1"), steps=1_000)
    counters = SharedCounters(2)
    counted = stats.Stats(config, counters, {})

    def measure(process: int) -> float:
        counters.count(1, Counter.STEPS, 7)
        return 1.0

    monkeypatch.setattr(stats, "resident_mb", measure)
    counters.count(0, Counter.STEPS, 10)
    for worker, troubles in enumerate([(1, 2, 3), (10, 20, 30)]):
        for counter, times in zip((Counter.SKIPPED, Counter.STARTS, Counter.ENV_ERRORS), troubles, strict=True):
            counters.count(worker, counter, times)
    row = counted.report(due=True)
    assert row["agent_steps"] == 10
    assert (row["updates_skipped"], row["worker_restarts"], row["env_errors"]) == (11, 22, 33)
    assert counted.moved
