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
from polyactor.storage import checkpoint
from polyactor.training.background_eval import Evaluator
from tests.helpers.runs import STEPS, Quiet, events, train


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
