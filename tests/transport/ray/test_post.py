"""Workers on the nodes of a cluster: what is lost is replaced, and nothing is counted twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import gymnasium
import numpy as np
import pytest

module = pytest.importorskip(
    "polyactor.transport.ray.post", reason="ray is not installed: pip install 'polyactor[ray]'"
)

from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError  # noqa: E402

from polyactor import transport  # noqa: E402
from polyactor.agent.parts import Parts  # noqa: E402
from polyactor.algorithms import A2C  # noqa: E402
from polyactor.config import Config, RayOptions  # noqa: E402
from polyactor.errors import EnvironmentUnsupported, OutOfResources  # noqa: E402
from polyactor.shared.counters import Counter, SharedCounters  # noqa: E402
from tests.helpers.fresh import fresh  # noqa: E402
from tests.helpers.servers import SCHEMES, B, T, W, config_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("cluster")


class Told:
    """The events of a run."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, reason: str = "", **fields: Any) -> None:
        self.events.append((event, {"reason": reason, **fields}))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


@contextmanager
def over_ray(config: Config) -> Iterator[tuple[Generator[None, None, None], Parts, Told]]:
    parts, told = fresh(replace(config, transport="ray")), Told()
    run = transport.run(parts, told)
    try:
        yield run, parts, told
    finally:
        run.close()


def until(run: Generator[None, None, None], condition: Any, deadline: float = 60.0) -> float:
    """Seconds until a condition holds, while the run goes on."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + deadline
        next(run)
    return time.monotonic() - start


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", ["server", pytest.param("learner", marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced_and_the_others_go_on(name: str) -> None:
    with over_ray(config_of(SCHEMES[name])) as (run, parts, told):
        counters = parts.counters
        until(run, lambda: (counters.table[:, Counter.TURNS] > 2).all())
        (victim,) = [each["pid"] for each in told.of("worker_started") if each["worker"] == 1]
        os.kill(victim, signal.SIGKILL)
        until(run, lambda: told.of("worker_lost"))
        turns = int(counters.table[1, Counter.TURNS])
        until(run, lambda: counters.table[1, Counter.TURNS] > turns)
        assert told.of("worker_lost") == [{"reason": "worker 1 was killed on its node (out of memory?)", "worker": 1}]
        (new,) = told.of("worker_restarted")
        assert (new["worker"], new["pid"] == victim) == (1, False)
        assert counters.starts(1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["server", "learner"])
def test_it_ends_by_itself_and_counts_what_it_learned_from(name: str) -> None:
    with over_ray(config_of(SCHEMES[name], steps=2_000)) as (run, parts, _):
        for _ in run:
            pass
        counters = parts.counters
        assert 2_000 <= counters.steps <= 2_000 + 2 * W * T * B
        assert counters.table[:, Counter.GAMES].sum() == len(counters.new_games()) > 0
        assert not counters.table[:, Counter.SKIPPED].any()


@pytest.mark.parametrize("name", ["server", "learner"])
def test_a_run_whose_steps_are_done_does_not_wait_for_workers_without_a_place(name: str) -> None:
    with over_ray(config_of(SCHEMES[name], steps=100, ray=RayOptions(cpus=100.0))) as (run, parts, _):
        parts.counters.count(0, Counter.STEPS, 100)
        end = time.monotonic() + 20.0
        for _ in run:
            assert time.monotonic() < end


@pytest.mark.slow
@pytest.mark.fault("P7")
def test_a_worker_that_is_stopped_is_given_up_after_the_lease() -> None:
    config = config_of(SCHEMES["server"], ray=RayOptions(lease=2.0))
    with over_ray(config) as (run, parts, told):
        until(run, lambda: (parts.counters.table[:, Counter.TURNS] > 2).all())
        os.kill(told.of("worker_started")[0]["pid"], signal.SIGSTOP)
        seconds = until(run, lambda: told.of("worker_lost"))
        assert 1.5 < seconds < 6.0
        assert told.of("worker_lost")[0]["reason"].endswith("gave no answer for 2 s (--ray.lease)")
        until(run, lambda: told.of("worker_restarted"))


@pytest.mark.slow
@pytest.mark.fault("P1", "D5")
@pytest.mark.parametrize("name", ["server", "learner"])
def test_after_random_kills_all_counters_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each letter is taken in once: what the run has counted is what the letters said."""
    taken: list[tuple[int, int, int]] = []
    turns = np.zeros(3, int)
    take = module.Post._take

    def watched(self: Any, i: int, seat: Any) -> None:
        number, before = seat.turns[0][0], self.slots.filled(i)
        take(self, i, seat)
        if self.slots.filled(i) > before:
            taken.append((i, self.counters.starts(i), number))

    def counted(self: Any, worker: int, report: Any) -> None:
        turns[worker] += report.turns
        original(self, worker, report)

    original = SharedCounters.take
    monkeypatch.setattr(module.Post, "_take", watched)
    monkeypatch.setattr(SharedCounters, "take", counted)
    rng = np.random.default_rng(0)
    with over_ray(config_of(SCHEMES[name], workers=3)) as (run, parts, told):
        pids = lambda: {each["worker"]: each["pid"] for name, each in told.events if name.endswith("started")}  # noqa: E731
        for kills in range(10):
            done = parts.counters.table[:, Counter.TURNS].copy()  # who has done nothing three times ends the run
            until(run, lambda kills=kills: len(told.of("worker_restarted")) >= kills)
            until(run, lambda done=done: (parts.counters.table[:, Counter.TURNS] > done + 1).all())
            os.kill(pids()[int(rng.integers(3))], signal.SIGKILL)
            until(run, lambda kills=kills: len(told.of("worker_lost")) > kills)
    assert len(set(taken)) == len(taken)
    assert parts.counters.table[:, Counter.TURNS].tolist() == turns.tolist()
    assert parts.counters.table[:, Counter.STARTS].sum() >= 9


class Killed:
    """An environment whose process is killed when it is made."""

    def __new__(cls) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.fault("P9")
def test_a_worker_that_is_killed_three_times_before_its_first_turn_ends_the_run() -> None:
    config = config_of(SCHEMES["server"], workers=1)
    parts = fresh(config)
    parts = replace(parts, config=replace(config, env=Killed, transport="ray"))
    with pytest.raises(OutOfResources, match="3 processes in a row have"):
        list(transport.run(parts))


class Faulty(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Answers in one step of ten with what no environment may."""

    def __init__(self, answer: Any) -> None:
        super().__init__(gymnasium.make("polyactor/Chain-v0"))
        self.answer = answer

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 0.1:
            return self.answer, 0.0, False, False, {}
        return super().step(action)


@pytest.mark.slow
@pytest.mark.fault("P3", "D1", "D2")
@pytest.mark.parametrize("name", ["server", "learner"])
@pytest.mark.parametrize("answer", [np.full(2, np.nan, np.float32), np.zeros(7, np.float32), "no array"], ids=repr)
def test_a_step_that_fails_costs_its_game_alone_and_is_told(name: str, answer: Any) -> None:
    with over_ray(config_of(SCHEMES[name], env=partial(Faulty, answer))) as (run, parts, told):
        until(run, lambda: parts.counters.table[:, Counter.ENV_ERRORS].sum() >= 5)
        found = [why for _, why in parts.counters.new_env_errors()]
        assert found
        assert all("Faulty" in why and "at step" in why for why in found), found
        assert not told.of("worker_lost")
        assert parts.state.vector.isfinite().all()


class Poisoned(A2C):
    """One loss of five is no number."""

    calls = count()

    def loss(self, *args: Any) -> Any:
        loss, metrics = super().loss(*args)
        return (loss * np.nan if next(Poisoned.calls) % 5 == 0 else loss), metrics


@pytest.mark.slow
@pytest.mark.fault("D3")
@pytest.mark.parametrize("name", ["server", "learner"])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(name: str) -> None:
    with over_ray(config_of(SCHEMES[name], algorithm=Poisoned())) as (run, parts, told):
        until(run, lambda: parts.counters.table[:, Counter.SKIPPED].sum() > 4 and parts.counters.version > 20)
        assert not told.of("worker_lost")
        assert parts.state.vector.isfinite().all()


@pytest.mark.fault("P2")
def test_what_a_worker_raises_is_shown() -> None:
    config = config_of(SCHEMES["server"], workers=1)
    parts = replace(fresh(config), config=replace(config, env=Refusing, transport="ray"))
    with pytest.raises(EnvironmentUnsupported, match="this cannot be made"):
        list(transport.run(parts))


@pytest.mark.parametrize(
    ("error", "reason", "memory"),
    [
        (ActorDiedError(), "was lost: ActorDiedError: The actor died unexpectedly before finishing this task.", False),
        (OutOfMemoryError("too much"), "was killed on its node (out of memory?)", True),
        (ActorUnavailableError("gone", b"x" * 16), "was lost with its node", False),
    ],
)
def test_what_ray_says_of_a_lost_worker_is_said_in_few_words(error: Any, reason: str, memory: bool) -> None:
    exit = module._exit(3, error)
    assert (exit.worker, exit.reason, exit.memory, exit.raised) == (3, reason, memory, False)
    assert str(exit.error) == f"worker 3 {reason}"


class Refusing:
    def __new__(cls) -> Any:
        raise RuntimeError("this cannot be made")
