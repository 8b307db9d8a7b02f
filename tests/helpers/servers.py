"""Runs under a server or a learner, taken a few updates at a time."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from polyactor import transport
from polyactor.algorithms import A2C
from polyactor.config import Config
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.optim.flat import State
from polyactor.schemes import ActorLearner, Hogwild, ParamServer
from polyactor.shared.counters import METRICS, SharedCounters
from tests.helpers.fresh import fresh

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
