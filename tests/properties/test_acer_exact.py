"""ACER on problems whose answers are known: a bandit, a chain, a random MDP judged off-policy, a linear regulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.algorithms import ACER
from polyactor.algorithms.base import Algorithm
from polyactor.config import Config
from polyactor.data import Batch, Distribution, Outputs, Rollout
from polyactor.envs import make_envs
from polyactor.envs.diagnostic import LQR
from polyactor.models.action_space import action_spec
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import Sync
from tests.helpers.exact import outputs, train

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def config(env: Any, algorithm: Algorithm, **changes: Any) -> Config:
    """Learning rates end at 0."""
    given: dict[str, Any] = {
        "optimizer": Adam(lr=5e-3, lr_end=0.0, eps=1e-8),
        "workers": 1,
        "envs": 8,
        "rollout": 5,
        "model": ModelSpec(hidden=(32,)),
    }
    return Config(env, algorithm, Sync(threads=1), **given | changes)


# -- discrete ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("region", ["params", "probs", "none"])
def test_bandit_policy_is_the_softmax_of_rewards_over_beta(golden: Golden, region: Any) -> None:
    x, answer = golden("bandit_entropy")
    acer = ACER(gamma=0.9, entropy_coef=x["beta"], trust_region=region, replay_capacity=4_000, replay_start=200)
    model = train(config("polyactor/Bandit-v0", acer, steps=6_000))
    policy, q = outputs(model, torch.ones(1, 1))
    pi, best = policy[0].softmax(-1).double(), torch.tensor(answer["pi_star"], dtype=torch.float64)
    assert 0.5 * (pi - best).abs().sum() < 0.02, pi
    np.testing.assert_allclose(q[0], x["r"], rtol=0, atol=0.02)


@pytest.mark.slow
def test_chain_greedy_policy_goes_right_from_every_state(golden: Golden) -> None:
    x, answer = golden("chain5")
    acer = ACER(gamma=x["gamma"], entropy_coef=0.05, entropy_coef_end=0.0, replay_capacity=10_000, replay_start=400)
    policy, q = outputs(train(config("polyactor/Chain-v0", acer, steps=12_000)), torch.eye(5))
    assert policy.argmax(-1).tolist() == [1] * 5
    v = (policy.softmax(-1) * q).sum(-1)
    np.testing.assert_allclose(v[1:], answer["V_optimal"][1:], rtol=0, atol=0.3)


class Tabular:
    """π as given, Q a table; observations are states."""

    def __init__(self, pi: Any) -> None:
        self.log_pi = torch.tensor(pi, dtype=torch.float64).log()
        self.q = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        self.spec = action_spec(spaces.Discrete(2))

    def distribution(self, params: Tensor, /) -> Distribution:
        return self.spec.distribution(params)

    def unroll(self, rollout: Rollout) -> Outputs:
        return Outputs(self.log_pi[rollout.observation], self.q[rollout.observation])


def walk(x: dict[str, Any], t: int, b: int, state: np.ndarray, rng: np.random.Generator) -> tuple[Rollout, np.ndarray]:
    """T steps of B walkers with μ."""
    p, r, mu = (np.array(x[name]) for name in ("P", "R", "mu"))
    states, actions, rewards = [state], [], []
    for _ in range(t):
        a = (rng.random(b) > mu[state, 0]).astype(int)
        actions.append(a)
        rewards.append(r[state, a])
        state = (rng.random((b, 1)) > p[state, a].cumsum(-1)).sum(-1)
        states.append(state)
    rollout = Rollout(
        observation=torch.from_numpy(np.stack(states)),
        is_first=torch.zeros(t + 1, b, dtype=torch.bool),
        action=torch.from_numpy(np.stack(actions)),
        reward=torch.from_numpy(np.stack(rewards)),
        terminated=torch.zeros(t, b, dtype=torch.bool),
        behavior_log_prob=torch.zeros(t, b),
        behavior_params=torch.from_numpy(np.log(mu))[np.stack(states[:-1])],
        core_state=(),
        version=torch.zeros(b, dtype=torch.int64),
    )
    return rollout, state


def evaluated(x: dict[str, Any], acer: ACER, steps: int) -> np.ndarray:
    model, rng, state = Tabular(x["pi"]), np.random.default_rng(0), np.zeros(20, int)
    updates = steps // 200
    optimizer = torch.optim.Adam([model.q], lr=0.03)
    for i in range(updates):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / updates)
        rollout, state = walk(x, 10, 20, state, rng)
        loss, _ = acer.loss(model, Batch(rollout))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.q.detach().numpy()


def test_the_critic_judges_a_policy_that_did_not_act(golden: Golden) -> None:
    """2 × 10⁵ steps of μ, and Q^π."""
    x, answer = golden("random_mdp_off_policy")
    acer = ACER(gamma=x["gamma"], trust_region="none", entropy_coef=0.0)
    np.testing.assert_allclose(evaluated(x, acer, 200_000), answer["Q_pi"], rtol=0, atol=0.1)


@dataclass(frozen=True)
class TakesMuForPi(ACER):
    """A fault: traces of 1 and values of μ, as if what acted were what is judged."""

    def loss(self, model: Any, batch: Batch, average: Any = None) -> Any:
        mu = model.log_pi[batch.rollout.observation].clone()
        mu[:-1] = batch.rollout.behavior_params
        on = batch.rollout.replace(behavior_params=mu[:-1])
        acting = Tabular([[0.4, 0.6], [0.6, 0.4], [0.9, 0.1]])
        acting.q = model.q
        return super().loss(acting, replace(batch, rollout=on))


def test_judging_what_acted_instead_would_be_noticed(golden: Golden) -> None:
    x, answer = golden("random_mdp_off_policy")
    found = evaluated(x, TakesMuForPi(gamma=x["gamma"], trust_region="none", entropy_coef=0.0), 100_000)
    assert np.abs(found - answer["Q_pi"]).max() > 0.5  # Q of μ is elsewhere
    mu, v_mu = np.array(x["mu"]), np.array(answer["V_mu"])
    np.testing.assert_allclose((mu * found).sum(-1), v_mu, rtol=0, atol=0.25)


# -- continuous --------------------------------------------------------------------------------------------------------


class Quadratic(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The regulator with what a linear policy and a quadratic value need to see, its costs a tenth."""

    def __init__(self) -> None:
        super().__init__(LQR())
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return self.seen(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self.seen(observation), 0.1 * float(reward), terminated, truncated, info

    def seen(self, observation: Any) -> Any:
        x, v = observation
        return np.array([x, v, x * x, x * v, v * v], np.float32)


def cost(model: ActorCritic, gamma: float, games: int) -> float:
    """Discounted, of the policy with its own deviation."""
    envs = make_envs(Quadratic, games)
    generator, total = torch.Generator().manual_seed(0), np.zeros(games)
    observation = envs.reset(0)
    for t in range(200):
        params, _ = outputs(model, torch.from_numpy(observation))
        action = model.distribution(params).sample(generator).numpy()
        observation, reward, *_ = envs.step(action)
        total += 10 * gamma**t * reward
    envs.close()
    return -float(total.mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_regulator_costs_what_the_best_does(golden: Golden, seed: int) -> None:
    x, answer = golden("lqr_discounted")
    assert (LQR.a == np.array(x["A"])).all()
    acer = ACER(gamma=x["gamma"], truncation=5.0, entropy_coef=0.0, replay_capacity=20_000)
    run = config(
        Quadratic,
        acer,
        steps=160_000,
        rollout=20,
        seed=seed,
        optimizer=Adam(lr=0.05, lr_end=0.0, max_grad_norm=None),
        model=ModelSpec(hidden=(), log_std="fixed", log_std_start=float(np.log(x["policy_std"]))),
        max_episode_steps=40,
    )
    model = train(run)
    assert cost(model, x["gamma"], 400) == pytest.approx(-answer["V_x0_gaussian_policy"], rel=0.05)
