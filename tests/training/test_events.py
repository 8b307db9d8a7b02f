"""What happened in a run is written down with its time and reason, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyactor as pa
from polyactor.storage.metrics_log import read_rows
from polyactor.training import events as told


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


def test_events_have_a_time_and_a_reason(finished: pa.Run) -> None:
    happened = read_rows(finished.path / "events.jsonl")
    assert all(list(event)[:3] == ["time", "event", "reason"] for event in happened)
    assert [event["event"] for event in happened] == ["started", "stopping", "checkpoint_saved"]
