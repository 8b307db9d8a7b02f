"""Workers that are threads."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium
import pytest

from polyactor.errors import EnvironmentUnsupported
from polyactor.schemes import Hogwild
from tests.helpers.servers import SCHEMES, config_of, go_on, training

pytestmark = pytest.mark.alone


def test_threads_need_nothing_pickled() -> None:
    lock = threading.Lock()

    def make() -> Any:
        with lock:
            return gymnasium.make("CartPole-v1")

    with training(config_of(SCHEMES["threads"], env=make)) as (run, _, counters):
        go_on(run, counters, updates=3)
    with training(config_of(Hogwild(), env=make)) as (run, _, counters), pytest.raises(TypeError, match="pickle"):
        next(run)


def test_what_a_thread_raises_stops_the_run() -> None:
    config = config_of(Hogwild(workers_as="thread"), env=broken)
    with training(config) as (run, _, counters), pytest.raises(EnvironmentUnsupported) as caught:
        go_on(run, counters, 10**9, deadline=20.0)
    assert "environment 0 of broken failed 5 times in a row" in str(caught.value)
    assert isinstance(caught.value.__cause__, ArithmeticError)


def broken() -> Any:
    import gymnasium

    env = gymnasium.make("CartPole-v1")

    class Broken(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            raise ArithmeticError("the wheel came off")

    return Broken(env)
