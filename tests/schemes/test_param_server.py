"""A parameter server with workers that are processes: what is counted and what is bounded."""

from __future__ import annotations

from typing import Any

import pytest

from polyactor.algorithms import PPO
from polyactor.schemes import ParamServer
from polyactor.shared.counters import METRICS, Counter
from tests.helpers.marks import TRANSPORTS
from tests.helpers.servers import config_of, total, training


@pytest.mark.fault("D4")
@pytest.mark.parametrize("transported", TRANSPORTS)
def test_a_bound_on_staleness_holds_among_processes(transported: Any) -> None:
    worst: list[float] = []
    config = config_of(ParamServer(max_staleness=1), transport=transported)
    with training(config) as (run, _, counters):
        seen = 0.0
        while counters.version < 200:
            next(run)
            now, _ = total(counters, "gradient_staleness")
            worst.append(now - seen)
            seen = now
    assert max(worst) == 1.0


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
