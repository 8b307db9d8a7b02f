"""A learner with actors that are processes: the slots bound the lag."""

from __future__ import annotations

import time
from typing import Any

import pytest

from polyactor.algorithms import VTrace
from polyactor.schemes import ActorLearner
from polyactor.shared.counters import Counter
from tests.helpers.marks import TRANSPORTS
from tests.helpers.servers import config_of, go_on, total, training

pytestmark = pytest.mark.alone


@pytest.mark.fault("D4", "D6")
@pytest.mark.parametrize("transported", TRANSPORTS)
@pytest.mark.parametrize(("lag", "least"), [(0, 0.0), pytest.param(3, 1.0, marks=pytest.mark.slow)])
def test_lag_is_bounded_by_the_slots_among_processes(lag: int, least: float, transported: Any) -> None:
    config = config_of(ActorLearner(max_lag=lag), algorithm=VTrace(), transport=transported)
    with training(config) as (run, _, counters):
        go_on(run, counters, 10)
        time.sleep(1.0)  # the learner does nothing: actors fill every slot they may, and stop there
        games = counters.table[:, Counter.GAMES].copy()
        time.sleep(0.5)
        assert (counters.table[:, Counter.GAMES] == games).all()
        before, count = total(counters, "policy_lag")
        go_on(run, counters, counters.version + lag + 1)
        after, count_after = total(counters, "policy_lag")
        assert least <= (after - before) / (count_after - count) <= lag
