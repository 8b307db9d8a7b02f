"""A run's state is copied at a standstill and written while it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyactor.optim.flat import State
from polyactor.shared.counters import SharedCounters
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import MetricsLog
from polyactor.training.checkpointing import Checkpointer
from tests.helpers.runs import Quiet, train


def test_workers_wait_while_the_state_is_copied_and_not_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SharedCounters] = []
    words: dict[str, list[int]] = {"copied": [], "written": []}

    def noted(moment: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            words[moment].append(int(made[0]._word[0]))
            if moment == "written" and len(words[moment]) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*given, **more)

        return call

    def counters(*given: Any) -> SharedCounters:
        made.append(SharedCounters(*given))
        return made[0]

    monkeypatch.setattr("polyactor.agent.parts.SharedCounters", counters)
    monkeypatch.setattr(State, "tensors", noted("copied", State.tensors))
    monkeypatch.setattr("polyactor.training.checkpointing.checkpoint.save", noted("written", checkpoint.save))
    config = {"env": Quiet, "scheme": "hogwild", "workers": 2, "steps": 10**9, "checkpoint_every": 0.2}
    assert train(tmp_path / "run", **config).status == "stopped"
    assert len(words["written"]) >= 2
    assert words["copied"][0] > 0  # the number of a pause
    assert words["written"][0] == 0


@pytest.mark.fault("S1")
def test_a_checkpoint_that_is_gone_costs_its_tag_alone(tmp_path: Path) -> None:
    said: list[str] = []
    with MetricsLog(tmp_path) as log:
        assert not Checkpointer(tmp_path, log, said.append).point("best", at="candidate")
    assert said == [f"not saved: {tmp_path}/checkpoints/candidate.json is missing; training goes on and tries again"]
