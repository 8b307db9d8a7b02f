"""A score is reached once fresh games confirm it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import polyactor as pa
from polyactor import transport
from polyactor.storage import checkpoint
from tests.helpers.runs import Quiet, events, train


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


def test_a_score_out_of_reach_is_not_reached(tmp_path: Path) -> None:
    run = train(tmp_path / "run", env=Quiet, stop_at=11.0, rollout=50)
    assert run.summary["games"] >= 100
    assert run.status == "done"
    assert run.summary["reached_at_steps"] is None
    assert not events(run.path, "confirmation")


class Licensed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Only so many of it may exist at a time."""

    alive, most, ever = 0, 1, 0

    def __init__(self) -> None:
        if Licensed.alive >= Licensed.most:
            raise OSError("no licence is free")
        Licensed.alive += 1
        Licensed.ever = max(Licensed.ever, Licensed.alive)
        super().__init__(Quiet())

    def close(self) -> None:
        Licensed.alive -= 1


@pytest.mark.fault("S1", "S3")
def test_training_goes_on_where_a_score_cannot_be_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Licensed, "alive", 0)
    run = train(tmp_path / "run", env=Licensed, envs=1, rollout=50, steps=2_500, stop_at=8.0, quiet=False)
    assert (run.status, run.summary["reached_at_steps"]) == ("done", None)
    assert run.summary["agent_steps"] >= 2_500
    failed = events(run.path, "confirmation_failed")
    assert 1 <= len(failed) <= 3  # after at least 100 games each, of 9 steps
    assert "OSError: no licence is free: training goes on; --evaluate.envs 0 would let" in failed[0]["reason"]
    assert f"confirmation failed: {failed[0]['reason']}" in capsys.readouterr().out.splitlines()
    assert checkpoint.load(run.path).meta["agent_steps"] == run.summary["agent_steps"]


@pytest.mark.fault("S3")
@pytest.mark.parametrize(("most", "envs"), [(1, 0), (3, 1), (4, None)])
def test_a_score_is_confirmed_with_the_environments_that_may_be(
    most: int, envs: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the run's two as many as are allowed, at most those of a worker; with none the run's own games count."""
    monkeypatch.setattr(Licensed, "alive", 0)
    monkeypatch.setattr(Licensed, "ever", 0)
    monkeypatch.setattr(Licensed, "most", most)
    values = {
        "env": Licensed,
        "envs": min(most, 2),
        "rollout": 50,
        "steps": 4_000,
        "stop_at": 8.0,
        "evaluate": {"envs": envs},
    }
    run = train(tmp_path / "run", **values)
    assert run.status == "reached"
    assert Licensed.ever == most
    (confirmation,) = events(run.path, "confirmation")
    assert confirmation["reason"] == ("100 further games of training" if envs == 0 else "100 fresh games")
    assert confirmation["evaluation_score"] == run.summary["confirmation_score"] >= 8.0
    assert (run.summary["games"] >= 200) == (envs == 0)


@pytest.mark.fault("S2")
@pytest.mark.parametrize(
    ("limit", "event", "words"),
    [
        (
            {"timeout": 1e-9},
            "confirmation_failed",
            "100 not ended in time (--evaluate.timeout): training goes on",
        ),
        ({"max_steps": 3}, "confirmation", "100 fresh games, 100 cut at the step limit (--evaluate.max-steps)"),
    ],
)
def test_games_that_are_cut_are_told_where_a_score_is_refused(
    limit: dict[str, Any], event: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", env=Quiet, stop_at=8.0, steps=1_500, evaluate=limit, quiet=False)
    assert run.status == "done"
    assert words in events(run.path, event)[0]["reason"]
    assert words.removeprefix("100 fresh games, ") in capsys.readouterr().out
