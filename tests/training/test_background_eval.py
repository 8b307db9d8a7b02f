"""Checkpoints are evaluated while training goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import polyactor as pa
from polyactor.evaluation.evaluate import Evaluation
from polyactor.storage import checkpoint
from polyactor.training import background_eval
from polyactor.training.background_eval import BackgroundEvaluation, Evaluator
from tests.helpers.policies import config_of
from tests.helpers.runs import STEPS, Quiet, events, train


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


@pytest.mark.fault("S1")
@pytest.mark.parametrize("where", [(Evaluator, "poll"), (background_eval, "ProcessPool")], ids=["result", "start"])
@pytest.mark.parametrize("trouble", [FileNotFoundError("evaluation.json"), ValueError("no JSON")])
def test_whatever_goes_wrong_beside_training_costs_the_evaluation_alone(
    where: tuple[Any, str], trouble: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **more: Any) -> None:
        raise trouble

    monkeypatch.setattr(*where, fails)
    run = train(tmp_path / "run", env=Quiet, steps=400, evaluate_every=200)
    assert run.status == "done"
    assert str(trouble) in events(run.path, "evaluation_failed")[0]["reason"]


class Told:
    """Events and checkpoints of a run that is not there."""

    def __init__(self) -> None:
        self.events, self.said, self.pointed = list[tuple[str, str]](), list[str](), 0

    def tell(self, event: str, reason: str = "", **fields: Any) -> None:
        self.events.append((event, reason))

    def say(self, line: str) -> None:
        self.said.append(line)

    def point(self, tag: str, *, at: str) -> bool:
        self.pointed += 1
        return True


@pytest.mark.fault("S2")
@pytest.mark.parametrize(
    ("found", "event", "best"),
    [
        (Evaluation((5.0,) * 20, (9,) * 20, 0, 0, False), ("evaluation", ""), 5.0),
        (
            Evaluation((5.0,), (9,), 0, 0, False, unplayed=19),
            ("evaluation", "19 not ended in time (--evaluate.timeout)"),
            None,
        ),
        (
            Evaluation((), (), 0, 0, False, unplayed=20),
            ("evaluation_failed", "no game has ended: 20 not ended in time (--evaluate.timeout)"),
            None,
        ),
    ],
)
def test_an_evaluation_without_all_its_games_is_told_and_never_the_best(
    found: Evaluation, event: tuple[str, str], best: float | None
) -> None:
    told: Any = Told()
    background = BackgroundEvaluation(config_of(Quiet, evaluate_every=1), told, told, None, 0)
    background.evaluator.poll = lambda timeout=0.0: found  # type: ignore[method-assign]
    background.hear(1.0)
    assert (told.events, told.pointed, background.best) == ([event], best is not None, best)


@pytest.mark.fault("S2")
def test_the_wait_for_the_last_evaluation_is_announced_and_its_end_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyactor.training.background_eval.LAST_EVALUATION_WITHIN", 0.05)
    told: Any = Told()
    background = BackgroundEvaluation(config_of(Quiet, evaluate_every=1), told, told, None, 0)
    background.evaluator._pool = told
    told.wait, told.stop = (lambda timeout: False), (lambda grace: None)
    background.hear(1.0, unless=lambda: False)
    assert told.said == ["waiting for the last evaluation, 0.05 s at most"]
    assert told.events == [("evaluation_failed", "it had not ended 0.05 s after the run")]
    assert not background.evaluator.busy
