"""The table of docs/many-machines.md is that of the kept measurement, whose bytes are those of the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.scripts import script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("wire", monkeypatch)


def test_the_page_has_the_lines_of_what_was_measured(wire: ModuleType) -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "wire.json").read_text())["rows"]
    page = wire.PAGE.read_text().partition(wire.BEGIN)[2].partition(wire.END)[0].splitlines()[2:]
    fields = ("steps", "up", "down", "worker", "run")
    assert page == [wire.line(row["row"], row["wire"], wire.Cost(*(row[each] for each in fields))) for row in kept]


def test_bytes_are_those_of_the_tensors(wire: ModuleType) -> None:
    found = wire.costs(wire.configured("a3c-server", {"env": "CartPole-v1", "envs": 2, "rollout": 5}))
    theta = 4 * 4_704  # 4 → 64 → 64 → (2, 1), each tensor on cache lines of its own
    for wire_, cost in found.items():
        rounded = theta // 2 if wire_ == "bf16" else theta
        assert cost.steps == 10
        assert cost.up - wire.CALL_UP == pytest.approx(rounded, abs=1_000)  # names, shapes and what was counted
        assert cost.down - wire.CALL_DOWN == pytest.approx(rounded, abs=1_000)
    assert found["fp32"].up - found["bf16"].up == pytest.approx(theta // 2, abs=100)
    assert found["fp32"].down - found["bf16"].down == pytest.approx(theta // 2, abs=100)
