"""Several workers on one state: they share what they should, and none dies silently or outlives its run."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from polyactor import transport
from polyactor.config import Config
from polyactor.errors import EnvironmentUnsupported, PolyactorError, WorkerFailed
from polyactor.optim import Adam
from polyactor.optim.flat import State
from polyactor.schemes import Hogwild
from polyactor.schemes.hogwild import Lock
from polyactor.shared.counters import METRICS, Counter, SharedCounters
from tests.helpers.counting import Counting, config_of
from tests.helpers.fresh import fresh
from tests.helpers.living import alive
from tests.helpers.programs import program
from tests.helpers.waiting import STARTED, nap, until


class Broken(Counting):
    """Raises at its 20th step, and those made in its place at once."""

    total = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Broken.total += 1
        if Broken.total >= 20:
            raise ArithmeticError("the wheel came off")
        return super().step(action)


class Verbose(Counting):
    """Raises at every step, with more to say than a pipe holds."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise ArithmeticError("the wheel came off " + "again " * 100_000)


@contextmanager
def training(config: Config) -> Iterator[tuple[Generator[None, None, None], State, SharedCounters]]:
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    scheme = transport.run(parts)
    try:
        yield scheme, state, counters
    finally:
        scheme.close()


def trained(config: Config, updates: int = 100) -> tuple[State, SharedCounters]:
    """Until every worker has had so many updates; one may start seconds after another."""
    with training(config) as (scheme, state, counters):
        until(lambda: bool((counters.table[:, Counter.UPDATES] >= updates).all()), lambda: next(scheme))
    return state, counters


def all_update(counters: SharedCounters) -> Callable[[], bool]:
    return lambda: bool((counters.table[:, Counter.UPDATES] > 0).all())


@pytest.fixture(autouse=True)
def _leaves_no_process() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("lock", ["none", "update", "both"])
def test_two_workers_count_and_share_one_set_of_statistics(lock: Lock) -> None:
    config = config_of(scheme=Hogwild(lock=lock))
    start = fresh(config).state.vector
    state, counters = trained(config)
    updates, steps = counters.table[:, Counter.UPDATES], counters.table[:, Counter.STEPS]
    assert (updates * 8 <= steps).all()  # a rollout is 10 transitions,
    assert (steps <= updates * 10).all()  # but those from a game's last observation are not counted
    assert counters.steps == steps.sum()
    assert counters.version == updates.sum()
    assert len(state.statistics) == 1
    counted = float(state.statistics[0]["step"])
    if lock == "none":  # two workers may count at once, and one count is lost then
        assert updates.max() < counted <= counters.version
    else:
        assert counted == counters.version
    assert not torch.equal(start, state.vector)
    games = counters.new_games()
    assert {game.worker for game in games} == {0, 1}
    assert {(game.score, game.length) for game in games} == {(10.0, 10)}


def test_workers_stop_at_the_total() -> None:
    config = config_of(steps=2_000)
    with training(config) as (scheme, _, counters):
        until(lambda: next(scheme, "over") == "over", lambda: None)
        assert config.steps <= counters.steps < config.steps + 2 * 10  # each may have been in its last rollout


@pytest.fixture(scope="module")
def unshared() -> tuple[State, SharedCounters]:
    return trained(config_of(optimizer=Adam(shared=False), per_worker=("optimizer.lr=.001,.002",)))


def test_unshared_statistics_are_one_set_per_worker(unshared: tuple[State, SharedCounters]) -> None:
    state, counters = unshared
    assert len(state.statistics) == 2
    own = [float(statistics["step"]) for statistics in state.statistics]
    assert own == counters.table[:, Counter.UPDATES].tolist()
    assert min(own) > 0
    first, second = (statistics["exp_avg_sq"] for statistics in state.statistics)
    assert first.any()
    assert second.any()
    assert not torch.equal(first, second)


def test_per_worker_values_reach_the_workers(unshared: tuple[State, SharedCounters]) -> None:
    _, counters = unshared
    total, count = counters._metrics[:, :, METRICS.index("learning_rate")].numpy()
    assert (total / count).tolist() == pytest.approx([0.001, 0.002])


def failure(config: Config) -> tuple[PolyactorError, float]:
    """What the run raises, and how many seconds after its workers' first update."""
    with training(config) as (scheme, _, counters):
        started = begun = time.monotonic()
        with pytest.raises(PolyactorError) as caught:  # noqa: PT012
            for _ in scheme:
                now = time.monotonic()
                begun = begun if counters.version else now
                assert now < started + STARTED, "the run hangs"
    return caught.value, time.monotonic() - begun


def test_an_error_in_an_environment_is_the_runs_own_with_its_traceback() -> None:
    error, seconds = failure(config_of(Broken))
    assert type(error) is EnvironmentUnsupported
    assert re.match(r"worker [01]: environment [01] of Broken failed 5 times in a row", str(error))
    assert "raised ArithmeticError: the wheel came off at step" in str(error)
    (trace,) = error.__notes__
    assert 'raise ArithmeticError("the wheel came off")' in trace
    assert Path(__file__).name in trace
    assert seconds < 10


def test_an_error_longer_than_a_pipe_does_not_hang_the_run() -> None:
    error, _ = failure(config_of(Verbose, workers=1))
    assert type(error) is EnvironmentUnsupported
    assert "raised ArithmeticError: the wheel came off again" in str(error)
    assert len(str(error)) < 1_000
    (trace,) = error.__notes__
    assert " […] " in trace
    assert len(trace) < 64_000


def test_pause_stops_everything_resume_goes_on_and_a_killed_worker_is_named() -> None:
    config = config_of(restarts=0)
    with training(config) as (scheme, state, counters):
        until(all_update(counters), lambda: next(scheme))
        begun, version = time.monotonic(), counters.version
        until(lambda: counters.version >= version + 50, nap)
        fifty_updates = time.monotonic() - begun

        with transport.paused(config, counters) as heeded:
            assert heeded
            table, vector = counters.table.copy(), state.vector.clone()
            time.sleep(max(0.2, fifty_updates))  # long enough for fifty, were they running
            assert (counters.table == table).all()
            assert torch.equal(state.vector, vector)
        until(lambda: bool((counters.table[:, Counter.UPDATES] > table[:, Counter.UPDATES]).all()), nap)

        victim = next(child for child in multiprocessing.active_children() if child.name == "polyactor-worker-1")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(WorkerFailed, match="worker 1 was killed by signal 9"):
            until(lambda: False, lambda: next(scheme), deadline=20)
        assert time.monotonic() - begun < 15  # the other worker was told to stop, and did
        assert bool(torch.isfinite(state.vector).all())


def test_a_run_that_is_closed_lets_its_workers_go() -> None:
    with training(config_of()) as (scheme, _, counters):
        until(all_update(counters), lambda: next(scheme))
        scheme.close()
        assert multiprocessing.active_children() == []
        assert counters.table[:, Counter.UPDATES].all()


PARENT = """
import multiprocessing
from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.envs import env_spec
from polyactor.settings.presets import base_config
from dataclasses import replace

if __name__ == "__main__":
    config = replace(base_config("a3c", env="polyactor/Chain-v0"), workers=2, envs=2, steps=10**9)
    parts = Parts.fresh(config, env_spec(config.env))
    counters = parts.counters
    scheme = transport.run(parts)  # kept, or it would be closed below
    for _ in scheme:
        if (counters.table[:, 0] > 0).all():
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            break
    input()
"""


@pytest.mark.fault("P5")
def test_workers_die_with_the_parent_however_it_dies(tmp_path: Path) -> None:
    with program(tmp_path / "parent.py", PARENT) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.kill()
        try:
            until(lambda: not any(alive(pid) for pid in pids), nap)
        finally:
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_a_run_leaves_no_file_open() -> None:
    config = config_of(transport="inline", scheme=Hogwild(lock="both"), steps=100)

    def still_open() -> int:
        with training(config) as (scheme, _, _):
            for _ in scheme:
                pass
        del scheme
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = still_open()
    assert still_open() <= before  # fewer, where a thread of another test closes its own meanwhile
