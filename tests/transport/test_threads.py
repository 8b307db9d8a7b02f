"""Workers that are threads."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from typing import Any

import gymnasium
import pytest

from polyactor.errors import EnvironmentUnsupported
from polyactor.schemes import Hogwild
from polyactor.system.interpreter import holding_interpreter, long_calls_until, may_begin_long_call
from polyactor.transport.threads import ThreadPool
from tests.helpers.programs import environment
from tests.helpers.servers import SCHEMES, config_of, go_on, training
from tests.helpers.waiting import STARTED


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


def hold_the_interpreter(worker: int, done: list[float]) -> None:
    """As a constructor in C does that does not let other threads run."""
    for _ in range(2):
        ctypes.PyDLL(None).usleep(300_000)
        done.append(time.monotonic())


def test_seconds_in_which_nobody_else_can_run_are_waited_for() -> None:
    done: list[float] = []
    pool = ThreadPool(hold_the_interpreter, 1, (done,))
    pool.stop(grace=0.3)
    assert len(done) == 2
    assert not pool.threads[0].is_alive()


def make_in_turn(worker: int, made: list[int], first: threading.Event, go_on: threading.Event) -> None:
    with holding_interpreter():
        made.append(worker)
        first.set()
        go_on.wait(STARTED)
    may_begin_long_call()
    made.append(-1)


@pytest.mark.fault("P6")
def test_threads_that_shall_end_make_no_more_emulators() -> None:
    made: list[int] = []
    first, go_on = threading.Event(), threading.Event()
    pool = ThreadPool(make_in_turn, 4, (made, first, go_on))
    assert first.wait(STARTED)
    with long_calls_until(lambda: True):  # as from the moment of a signal
        go_on.set()
        for thread in pool.threads.values():
            thread.join(STARTED)
        losses = pool.watch(0.0)
        pool.stop()
    assert losses == []  # the run has not failed of it
    assert len(made) == 1
    assert not any(thread.is_alive() for thread in pool.threads.values())


@pytest.mark.parametrize("name", ["polyactor-worker-0", "simulator"])
def test_a_thread_that_cannot_be_ended_does_not_keep_the_program(name: str) -> None:
    script = "import threading; from polyactor.system.interpreter import leave; "
    script += f"threading.Thread(target=threading.Event().wait, name={name!r}).start(); leave(75)"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), timeout=30, capture_output=True)
    assert (done.returncode, done.stderr) == (75, b"")
