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
