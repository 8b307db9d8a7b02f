"""When a supervisor replaces, waits, and gives up: with workers that are only played, by a clock that is set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyactor.config import Config, Roles
from polyactor.errors import EnvironmentUnsupported, WorkerExit, WorkerFailed
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.shared.heartbeat import ALL
from polyactor.shared.slot_queue import WakeUp
from polyactor.system.deadline import PATIENCE, Call
from polyactor.transport import supervisor as module
from polyactor.transport.supervisor import LIFELESS, SPARED, WINDOW, Supervisor


class Played:
    """A pool whose workers do as the test says."""

    workers = 2

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.news: list[WorkerExit] = []
        self.started: list[int] = []
        self.new = [0, 1]
        self.asked: list[tuple[int, bool]] = []

    def start(self, i: int) -> None:
        self.started.append(i)
        self.new.append(i)

    def begun(self) -> list[tuple[int, dict[str, object]]]:
        new, self.new = self.new, []
        return [(i, {"pid": 100 + i}) for i in new]

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[WorkerExit]:
        news, self.news = self.news, []
        return news

    def ask(self, i: int, *, kill: bool) -> None:
        self.asked.append((i, kill))


class Stage:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr("polyactor.shared.heartbeat.monotonic", lambda: self.now)
        self.config: Config = replace(base_config("a3c", env="CartPole-v1"), **values)
        self.counters, self.pool = SharedCounters(2), Played()
        self.told: list[str] = []
        self.lost: list[tuple[int, bool]] = []
        for worker in range(2):
            self.counters.heartbeats.begin(worker)
        roles = Roles(2, lost=lambda worker, for_good: self.lost.append((worker, for_good)))
        self.supervisor = Supervisor(self.pool, self.config, self.counters, roles, self.tell)

    def tell(self, event: str, reason: str = "", **fields: Any) -> None:
        self.told.append(event)

    def work(self, worker: int = 0) -> None:
        self.counters.count(worker, Counter.TURNS, 1)

    def lose(self, worker: int = 0, **how: Any) -> None:
        self.pool.news.append(WorkerExit(worker, WorkerFailed("it ended"), "ended", **how))
        self.supervise()

    def supervise(self, after: float = 0.0) -> bool:
        self.now += after
        return self.supervisor.supervise(0.0)


def test_who_had_done_something_is_replaced_at_once_and_who_had_not_a_little_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch)
    stage.work()
    stage.lose()
    assert stage.pool.started == [0]
    assert stage.counters.starts(0) == 1
    stage.lose()  # it has not done anything since
    assert stage.pool.started == [0]
    stage.supervise(0.9)
    assert stage.pool.started == [0]
    stage.supervise(0.2)
    assert stage.pool.started == [0, 0]
    stage.work()
    stage.lose()
    assert stage.pool.started == [0, 0, 0]  # the count of those in vain is over
    assert stage.lost == [(0, False)] * 3
    assert stage.told == ["worker_started", "worker_started", *["worker_lost", "worker_restarted"] * 3]


def test_losses_count_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, restarts=2)
    for _ in range(4):
        stage.work()
        stage.lose()
        stage.supervise(WINDOW / 2 + 1)
    for worker in (1, 1):
        stage.work(worker)
        stage.lose(worker)
    stage.work(1)
    with pytest.raises(WorkerFailed, match="loss 3 of this worker within an hour, and --restarts allows 2"):
        stage.lose(1)


def test_nobody_is_replaced_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, restarts=None)
    stage.work()
    stage.lose()
    assert stage.lost == [(0, True)]
    assert not stage.supervise(3600.0)
    assert not stage.pool.started
    stage.pool.done.add(1)
    assert stage.supervise()  # all that are left have ended well


@pytest.mark.fault("P17")
def test_who_hangs_when_all_steps_are_done_is_neither_replaced_nor_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, env_timeout=5.0, steps=100)
    stage.work()
    stage.counters.count(0, Counter.STEPS, 100)
    stage.counters.heartbeats.heartbeat(0).asked(ALL, None, Call.CLOSE)
    for _ in range(6):
        stage.supervise(1.0)
    assert stage.pool.asked == [(0, False)]
    stage.lose()
    stage.pool.done.add(1)
    assert stage.supervise(3600.0)
    assert not stage.pool.started
    assert stage.lost == [(0, True)]  # so that the main role does not wait for it


def test_an_error_of_ours_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.work()
    with pytest.raises(WorkerFailed, match=r"^it ended$"):
        stage.lose(ours=True, raised=True)


def test_who_hangs_is_asked_and_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, env_timeout=5.0)
    line = stage.counters.heartbeats.heartbeat(1)
    stage.work(1)
    line.asked(3, np.int64(2))
    for _ in range(5):
        stage.supervise(1.0)
    assert not stage.pool.asked
    stage.supervise(0.5)
    assert stage.pool.asked == [(1, False)]
    stage.supervise(PATIENCE - 0.1)
    assert stage.pool.asked == [(1, False)]
    stage.supervise(0.2)
    assert stage.pool.asked == [(1, False), (1, True)]
    stage.lose(1)
    stage.pool.asked.clear()
    stage.supervise(1.0)
    assert not stage.pool.asked  # it has been begun anew
    assert stage.pool.started == [1]


def test_who_hangs_again_and_again_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, env_timeout=5.0, restarts=0)
    stage.work(1)
    stage.counters.heartbeats.heartbeat(1).asked(3, np.array([0.5, -2.0]))
    for _ in range(6):
        stage.supervise(1.0)
    with pytest.raises(EnvironmentUnsupported) as caught:
        stage.lose(1)
    said = (
        "worker 1 was ended: CartPole-v1: environment 3 has not answered for 6 s, in step 0, after the action 0.5, -2"
    )
    assert said in str(caught.value)


def test_who_dies_in_a_step_of_an_environment_leaves_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, restarts=0)
    line = stage.counters.heartbeats.heartbeat(0)
    line.answered()
    line.asked(2, np.int64(1))
    stage.work()
    with pytest.raises(
        WorkerFailed, match="it ended; of CartPole-v1 environment 2 has not answered, in step 1, after the"
    ):
        stage.lose()
    assert stage.told[-1] == "worker_lost"


def test_a_run_that_was_itself_stopped_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ctrl-Z, say: its workers were stopped as well, and have not had their time."""
    stage = Stage(monkeypatch, env_timeout=5.0)
    stage.counters.heartbeats.heartbeat(0).asked(0, None)
    stage.counters.heartbeats.heartbeat(1).asked(0, np.int64(1))
    stage.supervise(3600.0)
    for _ in range(4):
        stage.supervise(1.0)
    assert not stage.pool.asked
    stage.supervise(1.5)
    assert stage.pool.asked == [(0, False), (1, False)]


def test_a_run_that_is_busy_now_and_then_ends_them_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that takes 3 s every minute must not put it off for ever."""
    stage = Stage(monkeypatch, env_timeout=60.0)
    stage.counters.heartbeats.heartbeat(0).asked(0, np.int64(1))
    for _ in range(2):
        stage.supervise(3.0)
        for _ in range(57):
            stage.supervise(1.0)
    assert stage.pool.asked[0] == (0, False)


def test_three_that_hang_and_are_killed_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, env_timeout=5.0)

    def hang() -> None:
        stage.counters.heartbeats.heartbeat(0).asked(0, np.int64(1))
        for _ in range(9):
            stage.supervise(1.0)
        stage.pool.news.append(WorkerExit(0, WorkerFailed("it ended"), "was killed", memory=True))
        for _ in range(4):
            stage.supervise(1.0)

    hang()
    hang()
    with pytest.raises(EnvironmentUnsupported, match="3 processes in a row"):
        hang()


def test_of_several_that_are_silent_the_longest_silent_is_ended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may only wait for a lock that it holds."""
    stage = Stage(monkeypatch)
    stage.supervise(0.5)
    stage.counters.heartbeats.beat(0)  # 0.5 s after the other

    def wait(seconds: float) -> None:
        for _ in range(int(seconds)):
            stage.supervise(1.0)

    wait(LIFELESS - 1)
    assert not stage.pool.asked
    wait(PATIENCE + 2)
    assert stage.pool.asked[0] == (1, False)
    assert stage.pool.asked[-1] == (1, True)
    stage.lose(1)
    wait(SPARED - PATIENCE - 4)
    assert {worker for worker, _ in stage.pool.asked} == {1}
    wait(5)
    assert {worker for worker, _ in stage.pool.asked} == {0, 1}  # it was silent all the same


def test_who_was_only_waiting_for_one_that_is_silent_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.supervise(0.5)
    stage.counters.heartbeats.beat(0)
    for _ in range(int(LIFELESS + PATIENCE + 3)):
        stage.supervise(1.0)
    stage.lose(1)
    stage.counters.heartbeats.beat(0)  # now it gets the lock
    for _ in range(int(SPARED) + 5):
        stage.supervise(1.0)
    assert {worker for worker, _ in stage.pool.asked} == {1}
