"""A score is reached once fresh games confirm it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def test_a_score_out_of_reach_is_not_reached(tmp_path: Path) -> None:
    run = train(tmp_path / "run", env=Quiet, stop_at=11.0)
    assert run.summary["games"] >= 100
    assert run.status == "done"
    assert run.summary["reached_at_steps"] is None
    assert not events(run.path, "confirmation")
