"""What callbacks keep in checkpoints, and get again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import polyactor as pa
from polyactor.errors import CheckpointError, UsageError
from polyactor.storage import checkpoint
from polyactor.training.callback_state import keyed, parted, restore
from tests.training.test_callbacks import events


class Counting:
    def __init__(self) -> None:
        self.rows, self.sums = 0, torch.zeros(2)

    def on_report(self, run: Any, row: Any) -> None:
        self.rows += 1
        self.sums += 1

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.sums = state["rows"], state["sums"]


class Strange(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"made": {1, 2}}


def train(out: Path, callbacks: Any) -> pa.Run:
    return pa.train("a2c", env="polyactor/Chain-v0", envs=2, steps=200, quiet=True, out=str(out), callbacks=callbacks)


def test_a_resumed_run_gives_its_callbacks_what_they_kept(tmp_path: Path) -> None:
    first, strange, second = Counting(), Strange(), Counting()
    second.rows = 1000
    run = train(tmp_path / "run", [first, strange, second])
    (failed,) = events(run.path, "callback_failed")
    assert "Strange.state_dict raised TypeError: its state_dict() has made, a set that is no JSON" in failed["reason"]
    assert checkpoint.load(run.path).meta["callbacks"]["Counting"] == {"rows": first.rows}
    again = Counting(), Counting()
    pa.resume(run.path, steps=400, quiet=True, callbacks=again)
    assert again[0].rows > first.rows > 0
    assert again[1].rows == 1000 + again[0].rows
    assert again[0].sums.tolist() == [again[0].rows] * 2


def test_a_state_that_is_not_taken_is_refused_naming_the_callback() -> None:
    meta = {"callbacks": {"Counting": {"lines": 3}}}
    with pytest.raises(UsageError, match=r"the callback Counting does not take the state .* KeyError: 'rows'; mend"):
        restore([Counting()], meta, {})
    restore([object()], meta, {})
    for wrong in (3, {"Counting": 3}):
        with pytest.raises(CheckpointError, match="callbacks are not what a run keeps"):
            restore([Counting()], {"callbacks": wrong}, {})


@pytest.mark.parametrize("state", [3, {1: 2}, {"x": float("nan")}, {"x": (1, 2)}, {"x": object()}, {"x": "a" * 70_000}])
def test_values_that_no_checkpoint_can_hold(state: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"its state_dict\(\)"):
        parted(lambda: state)


def test_two_of_a_class_are_told_apart() -> None:
    assert [name for name, _ in keyed([Counting(), Strange(), Counting()])] == ["Counting", "Strange", "Counting.2"]
