"""Environments of the run's own process are watched only while they are asked."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from polyactor.evaluation.evaluate import evaluate
from polyactor.models.actor_critic import ActorCritic
from polyactor.settings.presets import base_config
from polyactor.shared.counters import SharedCounters
from polyactor.transport.watchdog import untold, watched
from tests.helpers.fresh import fresh
from tests.helpers.runs import Quiet


def test_nobody_watches_any_more_when_the_games_are_over() -> None:
    """A thread that wakes while the interpreter ends would abort the process."""
    for _ in range(20):
        with watched(base_config("a2c", env=Quiet), SharedCounters(1), untold):
            pass
        assert "polyactor-watchdog" not in [thread.name for thread in threading.enumerate()]


def test_an_environment_does_not_hang_while_the_policy_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    config, step, steps = base_config("a2c", env=Quiet), ActorCritic.step, count()

    def slow(*given: Any, **named: Any) -> Any:
        time.sleep(0.7 if next(steps) == 3 else 0.0)
        return step(*given, **named)

    monkeypatch.setattr(ActorCritic, "step", slow)
    tensors = fresh(config).state.views()
    found = evaluate(replace(config, env_timeout=0.3), tensors, games=2, seed=0)
    assert len(found.scores) == 2
    assert not found.lost
