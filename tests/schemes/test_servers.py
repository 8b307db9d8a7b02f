"""A server and a learner with workers that are processes: what is counted, what is bounded, what fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from fresh import fresh
from marks import mostly_slow

import polyactor as pa
from polyactor import transport
from polyactor.algorithms import A2C, PPO, VTrace
from polyactor.config import Config
from polyactor.errors import EnvironmentUnsupported, WorkerFailed
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.optim.flat import State
from polyactor.schemes import ActorLearner, Hogwild, ParamServer, Sync
from polyactor.shared.counters import METRICS, Counter, SharedCounters
from polyactor.system.machine import torch_threads

pytestmark = pytest.mark.alone

B, T, W = 2, 5, 2
SCHEMES: dict[str, Any] = {
    "server": ParamServer(),
    "server-mean": ParamServer(apply="mean", max_staleness=0),
    "learner": ActorLearner(),
    "threads": Hogwild(workers_as="thread", lock="update"),
}


def config_of(scheme: Any, **values: Any) -> Config:
    standard = Config(
        env="CartPole-v1",
        algorithm=A2C(),
        scheme=scheme,
        optimizer=Adam(lr=1e-3),
        steps=10**9,
        workers=W,
        envs=B,
        rollout=T,
        model=ModelSpec(hidden=(8,)),
    )
    return replace(standard, **values)


@contextmanager
def training(config: Config) -> Iterator[tuple[Generator[None, None, None], State, SharedCounters]]:
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    run = transport.run(parts)
    try:
        yield run, state, counters
    finally:
        run.close()


def go_on(run: Generator[None, None, None], counters: SharedCounters, updates: int, deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while counters.version < updates:
        assert time.monotonic() < end, f"{counters.version} updates in {deadline} seconds"
        next(run)


def total(counters: SharedCounters, metric: str) -> tuple[float, float]:
    """Sum and count of a metric over the run."""
    values, counts = counters._metrics[:, :, METRICS.index(metric)].numpy()
    return float(values.sum()), float(counts.sum())


@pytest.mark.parametrize("name", SCHEMES)
def test_it_ends_by_itself_and_counts_what_it_learned_from(name: str) -> None:
    config = config_of(SCHEMES[name], steps=2_000)
    with training(config) as (run, state, counters):
        start = state.theta.clone()
        for _ in run:
            pass
        # A round of a learner is W rollouts; workers under a server each finish what they had begun.
        assert 2_000 <= counters.steps <= 2_000 + 2 * W * T * B
        assert not torch.equal(start, state.theta)
        played = counters.table[:, Counter.GAMES] > 0
        assert played.all() if name in ("server-mean", "learner") else played.any()  # who begins late may play none
        assert not counters.table[:, Counter.SKIPPED].any()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("transported", ["local", "inline"])
@pytest.mark.parametrize("name", ["sync", "server", "learner"])
def test_a_run_that_is_closed_leaves_torch_its_threads(name: str, transported: Any) -> None:
    schemes = {**SCHEMES, "sync": Sync()}
    config = config_of(schemes[name], workers=1, transport=transported)
    with torch_threads(2):
        with training(config) as (run, _, counters):
            go_on(run, counters, updates=3)
        del run
        assert torch.get_num_threads() == 2


def test_threads_need_nothing_pickled() -> None:
    lock = threading.Lock()

    def make() -> Any:
        with lock:
            return gymnasium.make("CartPole-v1")

    with training(config_of(SCHEMES["threads"], env=make)) as (run, _, counters):
        go_on(run, counters, updates=3)
    with training(config_of(Hogwild(), env=make)) as (run, _, counters), pytest.raises(TypeError, match="pickle"):
        next(run)


@pytest.mark.fault("D4")
def test_a_bound_on_staleness_holds_among_processes() -> None:
    worst: list[float] = []
    config = config_of(ParamServer(max_staleness=1))
    with training(config) as (run, _, counters):
        seen = 0.0
        while counters.version < 200:
            next(run)
            now, _ = total(counters, "gradient_staleness")
            worst.append(now - seen)
            seen = now
    assert max(worst) == 1.0


@pytest.mark.fault("D4", "D6")
@pytest.mark.parametrize(("lag", "least"), [(0, 0.0), pytest.param(3, 1.0, marks=pytest.mark.slow)])
def test_lag_is_bounded_by_the_slots_among_processes(lag: int, least: float) -> None:
    config = config_of(ActorLearner(max_lag=lag), algorithm=VTrace())
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


@pytest.mark.parametrize("name", ["server", "learner"])
def test_a_killed_worker_is_named_and_the_rest_let_go(name: str) -> None:
    with training(config_of(SCHEMES[name], restarts=0)) as (run, state, counters):
        go_on(run, counters, 5)
        victim = next(child for child in multiprocessing.active_children() if child.name == "polyactor-worker-1")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="worker 1 was killed by signal 9"):
            go_on(run, counters, 10**9, deadline=20.0)
        assert bool(torch.isfinite(state.vector).all())
    assert multiprocessing.active_children() == []


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


def test_workers_of_a_server_have_values_of_their_own() -> None:
    config = config_of(ParamServer(), per_worker=("optimizer.lr=1e-3,2e-3",))
    with training(config) as (run, _, counters):
        while not (counters.table[:, Counter.UPDATES] > 3).all():
            next(run)
        values, counts = counters._metrics[:, :, METRICS.index("learning_rate")].numpy()
        assert (values / counts).tolist() == pytest.approx([1e-3, 2e-3])


def test_several_updaters_apply_everything_once() -> None:
    config = config_of(ParamServer(updaters=3), workers=3, steps=3_000)
    with training(config) as (run, state, counters):
        for _ in run:
            pass
        assert float(state.statistics[0]["step"]) == counters.version


def test_ppo_takes_each_minibatch_at_the_parameters_the_last_one_left() -> None:
    config = config_of(ParamServer(), workers=1, algorithm=PPO(epochs=2, minibatches=2), steps=500)
    with training(config) as (run, _, counters):
        for _ in run:
            pass
        assert total(counters, "gradient_staleness")[0] == 0.0
        lag, count = total(counters, "policy_lag")
        assert lag / count == 1.5  # 0, 1, 2, 3


@pytest.mark.parametrize("method", mostly_slow(["a3c-server", "appo"], fast=["appo"]))
def test_a_run_is_saved_drawn_and_gone_on_with(method: str, tmp_path: Path) -> None:
    run = pa.train(method, env="CartPole-v1", workers=1, envs=2, steps=600, out=str(tmp_path / "run"), quiet=True)
    assert run.status == "done"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["policy_lag"] is not None and row["gradient_staleness"] is not None for row in rows)
    assert (run.path / "curve.png").exists()
    more = pa.resume(run.path, steps=1_200, quiet=True)
    assert more.summary["agent_steps"] >= 1_200
    assert more.summary["updates"] > run.summary["updates"]
