"""The rows of a run: their keys, their order, and what their numbers count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import polyactor as pa
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage.metrics_log import read_rows
from polyactor.training import stats
from tests.helpers.runs import ROW, STEPS, B, T


def test_rows_have_the_documented_keys_in_order(finished: pa.Run) -> None:
    rows = read_rows(finished.path / "metrics.jsonl")
    assert all(list(row) == ROW for row in rows)
    assert 50 <= len(rows) <= 201  # at most 200, each at an update, and the last
    for key in ("agent_steps", "updates", "games", "wall_s"):
        values = [row[key] for row in rows]
        assert values == sorted(values)
    last = rows[-1]
    assert STEPS <= last["agent_steps"] < STEPS + T * B
    assert all(isinstance(last[key], int | float) for key in ROW if key != "games_per_worker")
    assert last["games_per_worker"] == [last["games"]]
    assert last["policy_lag"] == last["gradient_staleness"] == 0  # sync has neither
    assert last["score_last"] == pytest.approx(round(last["score_last"]))  # CartPole pays 1 a step, whole games count
    assert last["score_mean100"] == pytest.approx(last["length_mean100"])
    assert last["rss_mb"] > 50


def test_a_slow_run_reports_with_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "ROWS", 1)
    run = pa.train("a2c", env="CartPole-v1", steps=4_000, out=str(tmp_path / "run"), quiet=True, checkpoint_every=0.0)
    rows = read_rows(run.path / "metrics.jsonl")
    assert len(rows) > 10  # one, but for the checkpoints: it looks and saves after each update
    assert [row["agent_steps"] for row in rows] == sorted({row["agent_steps"] for row in rows})


def test_time_spent_on_fresh_games_is_no_part_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, counters = [1_000.0], SharedCounters(1)
    monkeypatch.setattr(stats.time, "monotonic", lambda: now[0])
    known = stats.Stats(base_config("a2c", env="CartPole-v1"), counters, {})
    for seconds, apart in ((10.0, 0.0), (40.0, 30.0)):
        counters.count(0, Counter.STEPS, 1_000)
        now[0] += seconds
        known.apart(apart)
        assert known.report(due=True)["steps_per_s"] == 100.0
    assert known.wall == 50.0


def test_steps_made_while_a_row_is_written_belong_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring memory takes a moment, in which workers go on."""
    config = replace(base_config("a3c", env="CartPole-v1"), steps=1_000)
    counters = SharedCounters(2)
    counted = stats.Stats(config, counters, {})

    def measure(process: int) -> float:
        counters.count(1, Counter.STEPS, 7)
        return 1.0

    monkeypatch.setattr(stats, "resident_mb", measure)
    counters.count(0, Counter.STEPS, 10)
    for worker, troubles in enumerate([(1, 2, 3), (10, 20, 30)]):
        for counter, times in zip((Counter.SKIPPED, Counter.STARTS, Counter.ENV_ERRORS), troubles, strict=True):
            counters.count(worker, counter, times)
    row = counted.report(due=True)
    assert row["agent_steps"] == 10
    assert (row["updates_skipped"], row["worker_restarts"], row["env_errors"]) == (11, 22, 33)
    assert counted.moved
