"""What happened in a run is written down with its time and reason, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyactor as pa
from polyactor.storage.metrics_log import read_rows
from polyactor.training import events as told
from tests.helpers.games import Endless
from tests.helpers.runs import events, train


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


@pytest.mark.fault("S2")
def test_a_run_in_which_no_game_ends_says_so_once_and_how_to_bound_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(told, "LONG_GAME", 200)
    run = train(tmp_path / "run", env=Endless, steps=2_000, stop_at=5.0, quiet=False)
    (event,) = events(run.path, "no_game")
    assert event["reason"].startswith("no game has ended in about 20")
    assert "so there is no score, and --stop-at 5 cannot be reached: --max-episode-steps N ends" in event["reason"]
    lines = capsys.readouterr().out.splitlines()
    assert f"no game: {event['reason']}" in lines
    assert lines[-2].startswith("no game has ended in about 500 steps of each environment, so there is no score, and")
    assert lines[-1].startswith(f"checkpoints and numbers are in {run.path}; no curve: no game has ended; no film: ")

    assert not events(train(tmp_path / "other", steps=1_000).path, "no_game")
