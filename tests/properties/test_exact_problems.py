"""Training on problems whose answers are known: the whole path from environment to parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyactor.algorithms import A2C
from polyactor.algorithms.base import Model
from polyactor.config import Config
from polyactor.data import Batch, Distribution, Metrics, Outputs, Rollout
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam, RMSprop
from polyactor.optim.flat import State
from polyactor.schemes import Sync
from tests.helpers.exact import outputs, train
from tests.helpers.fresh import fresh

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def config(env: str, algorithm: A2C, **changes: Any) -> Config:
    """Learning rates end at 0 and nothing is clipped, so that what is left is neither noise nor bias."""
    given: dict[str, Any] = {
        "optimizer": Adam(lr=1e-2, lr_end=0.0, eps=1e-8, max_grad_norm=None),
        "workers": 1,
        "model": ModelSpec(hidden=(32,)),
    }
    return Config(f"polyactor/{env}-v0", algorithm, Sync(threads=1), **given | changes)


# -- bandit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "optimizer"),
    [
        pytest.param("mean", Adam(lr=5e-3, lr_end=0.0, eps=1e-8), marks=pytest.mark.slow),
        # The sum of the about 40 real rows of a rollout, with the clip and ε that go with it.
        pytest.param(
            "sum",
            RMSprop(lr=5e-3, lr_end=0.0, eps=1e-5 * 40**2, max_grad_norm=0.5 * 40),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mean-adam", "sum-rmsprop"],
)
def test_bandit_policy_is_the_softmax_of_rewards_over_beta(golden: Golden, reduction: Any, optimizer: Any) -> None:
    x, answer = golden("bandit_entropy")
    a2c = A2C(gamma=0.9, entropy_coef=x["beta"], reduction=reduction)
    model = train(config("Bandit", a2c, optimizer=optimizer, steps=40_000, envs=16, rollout=5))
    policy, value = outputs(model, torch.ones(1, 1))
    pi, best = policy[0].softmax(-1).double(), torch.tensor(answer["pi_star"], dtype=torch.float64)
    assert 0.5 * (pi - best).abs().sum() < 0.02, pi
    rewards = torch.tensor(x["r"], dtype=torch.float64)
    assert value.item() == pytest.approx(float(best @ rewards), abs=0.05)
    objective = float(pi @ rewards - x["beta"] * (pi * pi.log()).sum())
    assert objective == pytest.approx(answer["objective"], abs=2e-3)


# -- chain -------------------------------------------------------------------------------------------------------------


class Uniform:
    """A model whose policy is uniform and a constant to the loss; its values are those of the model inside."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def distribution(self, params: Tensor, /) -> Distribution:
        return self.model.distribution(params)

    def unroll(self, rollout: Rollout) -> Outputs:
        out = self.model.unroll(rollout)
        return Outputs(torch.zeros_like(out.policy), out.value)


@dataclass(frozen=True)
class Evaluation(A2C):
    """A2C that only learns V of the uniform policy."""

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        return super().loss(Uniform(model), batch)


def act_uniformly(state: State) -> None:
    for name in ("policy.weight", "policy.bias"):
        state.views()[name].zero_()


def test_chain_critic_is_exact_where_every_transition_counts_once(golden: Golden) -> None:
    """The expected update: a rollout of one step from each state with each action, through learner and updater."""
    x, answer = golden("chain5")
    run = config("Chain", Evaluation(gamma=x["gamma"]), steps=10_000, optimizer=Adam(lr=1e-2, lr_end=0.0, eps=1e-8))
    parts = fresh(run)
    state, counters = parts.state, parts.counters
    act_uniformly(state)
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    actor.envs.close()
    position = torch.arange(5).repeat(2)
    action = torch.arange(2).repeat_interleave(5)
    following = position + 2 * action - 1
    inside = (following >= 0) & (following < 5)
    eye = torch.eye(5)
    rollout = Rollout(
        observation=torch.stack([eye[position], eye[following.clamp(0, 4)] * inside[:, None]]),
        is_first=torch.tensor([[True], [False]]).expand(2, 10),
        action=action[None],
        reward=(x["left_reward"] * (following < 0) + x["right_reward"] * (following > 4))[None],
        terminated=~inside[None],
        behavior_log_prob=torch.full((1, 10), 0.5).log(),
        core_state=(),
        version=torch.zeros(10, dtype=torch.int64),
    )
    while counters.steps < run.steps:
        replica.pull()
        for gradients in learner.gradients(rollout):
            updater.apply(gradients)
    value = outputs(replica.model, eye)[1]
    np.testing.assert_allclose(value, answer["V_uniform_random"], rtol=0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "envs", "lr", "tolerance"),
    # A return's deviation is about 4, so it takes this many episodes to see the second decimal.
    [(150_000, 32, 1e-2, 0.3), (3_000_000, 128, 3e-3, 0.05)],
)
def test_chain_critic_finds_the_values_of_the_uniform_policy(
    golden: Golden, steps: int, envs: int, lr: float, tolerance: float
) -> None:
    x, answer = golden("chain5")
    optimizer = Adam(lr=lr, lr_end=0.0, eps=1e-8, max_grad_norm=None)
    run = config("Chain", Evaluation(gamma=x["gamma"]), steps=steps, envs=envs, rollout=15, optimizer=optimizer)
    model = train(run, act_uniformly)
    policy, value = outputs(model, torch.eye(5))
    assert (policy == 0).all()  # nothing but V was learned
    np.testing.assert_allclose(value, answer["V_uniform_random"], rtol=0, atol=tolerance)


def test_chain_greedy_policy_goes_right_from_every_state(golden: Golden) -> None:
    x, answer = golden("chain5")
    a2c = A2C(gamma=x["gamma"], entropy_coef=0.05, entropy_coef_end=0.0)
    model = train(config("Chain", a2c, steps=30_000, envs=16, rollout=5))
    policy, value = outputs(model, torch.eye(5))
    assert policy.argmax(-1).tolist() == [1] * 5
    # From where the policy walks V is that of always going right; the leftmost state it no longer sees.
    np.testing.assert_allclose(value[1:], answer["V_optimal"][1:], rtol=0, atol=0.3)


# -- time limit --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruncationIsTheEnd(A2C):
    """The common fault: what ends for a time limit is taken for terminal."""

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        x = batch.rollout
        ended = torch.zeros_like(x.terminated)
        ended[:-1] = x.is_first[2:]  # the row before a fake one
        return super().loss(model, replace(batch, rollout=x.replace(terminated=x.terminated | ended)))


def value_of_time_limit(algorithm: A2C) -> float:
    # 10 steps and a fake row: with T = 11 every rollout is a whole episode.
    model = train(config("TimeLimit", algorithm, steps=4_000, envs=4, rollout=11))
    return outputs(model, torch.ones(1, 1))[1].item()


def test_a_time_limit_does_not_end_the_return(golden: Golden) -> None:
    x, answer = golden("time_limit_mdp")
    for gae_lambda in (1.0, 0.0):
        value = value_of_time_limit(A2C(gamma=x["gamma"], gae_lambda=gae_lambda))
        assert value == pytest.approx(answer["V_correct"], abs=0.5)


def test_taking_a_time_limit_for_an_end_would_be_noticed(golden: Golden) -> None:
    """The wrong answers are the ones expected of the fault, so the test above can fail."""
    x, answer = golden("time_limit_mdp")
    for gae_lambda, kind in ((1.0, "mc"), (0.0, "td0")):
        value = value_of_time_limit(TruncationIsTheEnd(gamma=x["gamma"], gae_lambda=gae_lambda))
        assert value == pytest.approx(answer[f"V_if_truncation_is_terminal_{kind}"], abs=0.2)
        assert value != pytest.approx(answer["V_correct"], abs=0.5)
