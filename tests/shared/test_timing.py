"""A watch gives each lap to its part."""

from __future__ import annotations

import time

from polyactor.shared.counters import SharedCounters
from polyactor.shared.timing import Part, Watch


def test_a_watch_gives_each_lap_to_its_part() -> None:
    counters = SharedCounters(2)
    watch = Watch(lambda part, seconds: counters.spend(1, part, seconds))
    time.sleep(0.03)
    watch.lap(Part.INFER)
    time.sleep(0.01)
    watch.lap(Part.EMULATE)
    watch.lap(Part.INFER)
    counters.spend(0, Part.EMULATE, 1.0)
    spent = counters.spent()
    assert 0.03 <= spent[Part.INFER] < 1
    assert 1.01 <= spent[Part.EMULATE] < 2
    assert spent[Part.WAIT] == 0
