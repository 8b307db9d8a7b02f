"""A heartbeat tells what hangs."""

from __future__ import annotations

import numpy as np
import pytest

from polyactor.shared.heartbeat import ALL, Heartbeats


def test_a_heartbeat_tells_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("polyactor.shared.heartbeat.monotonic", lambda: now[0])
    heartbeats = Heartbeats(2)
    assert heartbeats.hanging(0, 1.0) is None  # nothing has begun
    heartbeats.begin(0)
    own = heartbeats.heartbeat(0)
    own.asked(ALL, None)
    now[0] += 4.9
    assert heartbeats.hanging(0, 1.0) is None  # a reset may take five times as long
    now[0] += 0.2
    assert heartbeats.hanging(0, 1.0) == "the environments have not answered for 5 s, in step 0, in a reset"
    own.answered()
    assert heartbeats.hanging(0, 1.0) is None
    own.asked(ALL, np.arange(40.0).reshape(4, 10))
    now[0] += 1.1
    found = heartbeats.hanging(0, 1.0)
    assert found is not None
    assert found.endswith("in step 1, after the action 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")
    own.answered()
    now[0] += 7.0
    assert heartbeats.silence(0) == 7.0
    assert heartbeats.hanging(0, 1.0) is None  # that is no environment's fault
    own.asked(ALL, None)
    assert heartbeats.silence(0) == 0.0  # the environment's deadline is another
    own.answered()
    now[0] += 7.0
    heartbeats.beat(0)
    assert heartbeats.silence(0) == 0.0


def test_ages_mean_the_same_by_another_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, now = Heartbeats(2), Heartbeats(2), [5.0]
    monkeypatch.setattr("polyactor.shared.heartbeat.monotonic", lambda: now[0])
    line = theirs.heartbeat(1)
    line.answered()
    now[0] += 2.0
    line.asked(3, np.int64(2))
    now[0] += 7.0
    ages = theirs.ages(1)
    now[0] = 1_000_000.0
    ours.rebase(1, ages)
    assert ours.asked(1) == theirs.asked(1)
    assert ours.hanging(1, 7.5) is None
    hanging = ours.hanging(1, 6.5)
    assert hanging is not None
    assert "environment 3 has not answered for 7 s" in hanging


def test_ages_of_a_worker_that_waits_for_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, now = Heartbeats(1), Heartbeats(1), [5.0]
    monkeypatch.setattr("polyactor.shared.heartbeat.monotonic", lambda: now[0])
    theirs.beat(0)
    now[0] += 4.0
    ages = theirs.ages(0)
    now[0] = 1_000_000.0
    ours.rebase(0, ages)
    assert ours.silence(0) == 4.0
    assert ours.asked(0) is None
