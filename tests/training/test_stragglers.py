"""Who is slow is told once, and again when it was not meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import polyactor as pa
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.shared.timing import Part
from polyactor.training import stragglers
from polyactor.training.stragglers import Stragglers

pytestmark = pytest.mark.alone


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def rollouts(counters: SharedCounters, clock: Clock, *took: float | None) -> None:
    """What each worker's two rollouts took, or that it had none."""
    for worker, seconds in enumerate(took):
        if seconds is not None:
            counters.count(worker, Counter.TURNS, 2)
            counters.spend(worker, Part.EMULATE, 2 * seconds)
            counters.spend(worker, Part.WAIT, 50.0)
            counters.spend(worker, Part.DIFFERENTIATE, 50.0)
    clock.now += stragglers.EVERY


def test_a_slow_worker_is_named_once(clock: Clock) -> None:
    counters = SharedCounters(3)
    look = Stragglers(counters)
    rollouts(counters, clock, 0.1, 0.1, 0.6)
    assert list(look.newly_slow()) == [(2, pytest.approx(6.0))]
    rollouts(counters, clock, 0.1, 0.1, 0.6)
    assert list(look.newly_slow()) == []
    for times in (4.9, 5.1):  # still slow
        rollouts(counters, clock, 0.1, 0.1, 0.1 * times)
        assert list(look.newly_slow()) == []
    rollouts(counters, clock, 0.1, 0.1, 0.1)
    assert list(look.newly_slow()) == []
    rollouts(counters, clock, 0.1, 0.1, 0.6)
    assert list(look.newly_slow()) == [(2, pytest.approx(6.0))]


def test_five_times_is_not_yet_slow_and_what_is_slower_than_one_other_is(clock: Clock) -> None:
    counters = SharedCounters(2)
    look = Stragglers(counters)
    rollouts(counters, clock, 0.25, 1.25)
    assert list(look.newly_slow()) == []
    rollouts(counters, clock, 0.25, 1.5)
    assert list(look.newly_slow()) == [(1, pytest.approx(6.0))]


def test_rollouts_longer_than_a_look_are_timed_when_they_are_done(clock: Clock) -> None:
    counters = SharedCounters(2)
    look = Stragglers(counters)
    for _ in range(3):
        rollouts(counters, clock, 1.0, None)
        assert list(look.newly_slow()) == []
    rollouts(counters, clock, None, 35.0)
    assert list(look.newly_slow()) == [(1, pytest.approx(35.0))]


def test_one_alone_is_not_compared_and_nothing_is_said_too_early(clock: Clock) -> None:
    counters = SharedCounters(1)
    look = Stragglers(counters)
    rollouts(counters, clock, 100.0)
    assert list(look.newly_slow()) == []
    counters = SharedCounters(2)
    look = Stragglers(counters)
    rollouts(counters, clock, 0.1, 9.0)
    clock.now -= 0.1
    assert list(look.newly_slow()) == []


class SlowInOne(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Each step of worker 1 takes 20 ms, of the others 1 ms: what anything else takes beside that is little."""

    def step(self, action: Any) -> Any:
        time.sleep(0.02 if multiprocessing.current_process().name == "polyactor-worker-1" else 0.001)
        return super().step(action)


@pytest.mark.fault("P7")
@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("impala", 120, {"scheme": {"max_lag": 0}}),  # in lockstep half of the steps are the slow one's: 1.2 s
        pytest.param("a3c", 1_200, {}, marks=pytest.mark.slow),  # nearly all are the other's: 1.2 s
    ],
)
def test_a_run_tells_of_a_slow_worker(
    name: str, steps: int, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stragglers, "EVERY", 0.25)
    run = pa.train(
        name, env=lambda: SlowInOne(gymnasium.make("CartPole-v1")), workers=2, envs=1, steps=steps, quiet=True,
        out=tmp_path / "run", **options,
    )  # fmt: skip
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    told = [each for each in events if each["event"] == "worker_slow"]
    assert [each["worker"] for each in told] == [1]
    assert "times as long as the others'" in told[0]["reason"]
