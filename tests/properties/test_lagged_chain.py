"""Learning from an older policy: the chain whose answer is known, with the lag held at a number."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyactor.algorithms import A2C, PPO, VTrace
from polyactor.algorithms.base import Algorithm
from polyactor.config import Config
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import ActorLearner
from polyactor.shared.counters import METRICS
from polyactor.transport import inline
from tests.helpers.fresh import fresh
from tests.helpers.marks import mostly_slow

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
GAMMA, START = 0.9, 1
ALGORITHMS: dict[str, Algorithm] = {
    "impala": VTrace(gamma=GAMMA, entropy_coef=0.01, entropy_coef_end=0.0),
    "appo": PPO(gamma=GAMMA, epochs=2, minibatches=2, entropy_coef=0.01, entropy_coef_end=0.0),
    "appo-vtrace": PPO(
        gamma=GAMMA, estimator="vtrace", epochs=2, minibatches=2, entropy_coef=0.01, entropy_coef_end=0.0
    ),
    "a2c": A2C(gamma=GAMMA, entropy_coef=0.01, entropy_coef_end=0.0),
}


def value_of_policy(right: torch.Tensor, left_reward: float, right_reward: float) -> torch.Tensor:
    """V^π = (I − γ P)⁻¹ r, ``[5]``, of a policy that goes right with these probabilities ``[5]``."""
    n = len(right)
    transition, reward = torch.zeros(n, n, dtype=torch.double), torch.zeros(n, dtype=torch.double)
    for s in range(n):
        for step, p, outside in ((-1, 1 - right[s], left_reward), (1, right[s], right_reward)):
            if 0 <= s + step < n:
                transition[s, s + step] += p
            else:
                reward[s] += p * outside
    return torch.linalg.solve(torch.eye(n, dtype=torch.double) - GAMMA * transition, reward)


def trained(name: str, lag: int) -> tuple[float, float]:
    """V of the start state under the final policy, and the mean lag, in learner's rounds, of what it learned from."""
    config = Config(
        env="polyactor/Chain-v0",
        algorithm=ALGORITHMS[name],
        scheme=ActorLearner(max_lag=lag),
        optimizer=Adam(lr=3e-3, lr_end=0.0, max_grad_norm=0.5),
        steps=80_000,
        workers=1,
        envs=16,
        rollout=10,
        model=ModelSpec(hidden=(32,)),
        transport="inline",
    )
    parts = fresh(config)
    counters = parts.counters
    order = itertools.chain([0] * (lag + 1), itertools.cycle((1, 0)))  # the actor fills every slot, then one by one
    for _ in inline.run_roles(parts, order=order):
        pass
    replica = parts.replica()
    with torch.no_grad():
        params, _, _ = replica.model(torch.eye(5).unsqueeze(0), (), torch.ones(1, 5, dtype=torch.bool))
    right = params[0].double().softmax(-1)[:, 1]
    total, count = counters._metrics[:, 0, METRICS.index("policy_lag")].tolist()
    updates = 4 if isinstance(config.algorithm, PPO) else 1  # a round's updates, during which PPO's lag grows by itself
    return float(value_of_policy(right, 1.0, 10.0)[START]), (total / count - (updates - 1) / 2) / updates


@pytest.mark.parametrize("lag", [pytest.param(0, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow), 20])
@pytest.mark.parametrize("name", mostly_slow([name for name in ALGORITHMS if name != "a2c"], fast=["impala"]))
def test_what_corrects_for_lag_finds_the_optimum_in_spite_of_it(golden: Golden, name: str, lag: int) -> None:
    _, answer = golden("chain5")
    value, measured = trained(name, lag)
    assert measured == pytest.approx(lag, rel=0.05)  # the lag was really there (less only in the first rounds)
    assert value == pytest.approx(answer["V_optimal"][START], rel=0.05)


@pytest.mark.slow
def test_a2c_with_lag_is_recorded_and_promises_nothing(record_property: Callable[[str, object], None]) -> None:
    found = {lag: round(trained("a2c", lag)[0], 3) for lag in (0, 5, 20)}
    record_property("a2c_value_by_lag", json.dumps(found))
    print(f"A2C, V of the start state by lag (optimum 7.29): {found}")
    assert all(torch.isfinite(torch.tensor(list(found.values()))))


def test_the_exact_evaluation_agrees_with_the_golden_values(golden: Golden) -> None:
    x, answer = golden("chain5")
    uniform = value_of_policy(torch.full((5,), 0.5, dtype=torch.double), x["left_reward"], x["right_reward"])
    assert uniform.tolist() == pytest.approx(answer["V_uniform_random"])
    best = value_of_policy(torch.ones(5, dtype=torch.double), x["left_reward"], x["right_reward"])
    assert best.tolist() == pytest.approx(answer["V_optimal"])
