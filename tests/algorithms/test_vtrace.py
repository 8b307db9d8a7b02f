"""Gradients of the V-trace loss against golden vectors and formulas written down a second time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.algorithms import A2C, VTrace
from polyactor.data import Batch, Rollout
from polyactor.equations import losses, returns
from polyactor.equations.distributions import Categorical
from polyactor.errors import UsageError
from tests.helpers.outputs import Table

MakeRollout = Callable[..., Rollout]
Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def close(a: Tensor, b: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=atol)


def test_golden_impala_losses(golden: Golden) -> None:
    """Both streams have one end inside, so one fake row each, put in where the episode ends."""
    x, policy = golden("vtrace_default")[0], golden("retrace_discrete")[0]
    inputs, outputs = golden("impala_losses")
    t, b = 6, 2
    is_first, terminated = torch.zeros(t + 1, b, dtype=torch.bool), torch.zeros(t, b, dtype=torch.bool)
    action, reward = torch.zeros(t, b, dtype=torch.int64), torch.full((t, b), 50.0, dtype=torch.float64)
    value, log_rho = torch.zeros(t + 1, b, dtype=torch.float64), torch.ones(t, b, dtype=torch.float64)
    logits = torch.randn(t + 1, b, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for j in range(b):
        row = 0
        for i in range(5):
            action[row, j], reward[row, j], value[row, j] = policy["actions"][i][j], x["r"][i][j], x["v"][i][j]
            logits[row, j] = torch.tensor(policy["logits"][i][j], dtype=torch.float64)
            log_rho[row, j], terminated[row, j] = math.log(x["rho"][i][j]), bool(x["terminated"][i][j])
            row += 1
            if x["terminated"][i][j] or x["truncated"][i][j]:
                value[row, j], is_first[row + 1, j] = x["v_next"][i][j], True
                row += 1
        value[row, j] = x["v_next"][4][j]
    mu = Categorical(logits[:-1]).log_prob(action) - log_rho
    rollout = Rollout(torch.zeros(t + 1, b, 1), is_first, action, reward, terminated, mu, (), torch.zeros(b))
    assert rollout.steps == 10
    model = Table(rollout, spaces.Discrete(3))
    model.policy, model.value = logits.requires_grad_(), value.requires_grad_()

    cost = {"value_coef": inputs["baseline_cost"], "entropy_coef": inputs["entropy_cost"]}
    loss, metrics = VTrace(gamma=x["gamma"], **cost, reduction="sum").loss(model, Batch(rollout))
    loss.backward()
    close(loss, outputs["total"])
    close(metrics["policy_loss"], outputs["pg_loss"])
    close(metrics["value_loss"], outputs["baseline_loss"])
    close(metrics["entropy"] * 10, -outputs["neg_entropy"])
    assert value.grad is not None
    real = rollout.mask.T.bool()
    close(value.grad[:-1].T[real].view(b, 5).T, outputs["dtotal_dv"])
    assert (value.grad[:-1].T[~real] == 0).all()
    assert (value.grad[-1] == 0).all()
    mean = VTrace(gamma=x["gamma"], **cost).loss(model, Batch(rollout))[0]
    close(mean, outputs["total"] / 10)


def lagged(x: Rollout, model: Table, seed: int = 0) -> Rollout:
    """With the log-probabilities of another policy, about e^±½ away from the model's."""
    noise = torch.randn(x.reward.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_pi = model.distribution(model.policy[:-1]).log_prob(x.action).detach()
    return x.replace(behavior_log_prob=log_pi - 0.5 * noise)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_v_trace_gradient_by_formula(make_rollout: MakeRollout, reduction: losses.Reduction) -> None:
    """dL/dz = [(π − 1_a) A + β π (log π + H)]/N and dL/dV = c (V − v)/N at real rows; ρ, A and v are constants."""
    x = make_rollout(9, 4, actions=spaces.Discrete(3), seed=3)
    model = Table(x, spaces.Discrete(3))
    x = lagged(x, model)
    bars = {"trace_lambda": 0.8, "rho_bar": 1.3, "c_bar": 0.9, "policy_rho_bar": 1.6}
    algorithm = VTrace(gamma=0.9, value_coef=0.7, entropy_coef=0.3, reduction=reduction, **bars)
    algorithm.loss(model, Batch(x))[0].backward()

    z, v = model.policy.detach()[:-1], model.value.detach()
    p = z.softmax(-1)
    taken = torch.nn.functional.one_hot(x.action, 3)
    rho = (p * taken).sum(-1) / x.behavior_log_prob.exp()
    assert (rho > 1.6).any()
    assert (rho < 0.9).any()
    discount = 0.9 * (~x.terminated).double()
    advantage, target = returns.vtrace(x.reward, v, discount, x.mask, rho, **bars)
    n = x.mask.sum() if reduction == "mean" else 1.0
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    dz = (p - taken) * advantage[..., None] + 0.3 * p * (p.log() + entropy)
    assert model.policy.grad is not None
    assert model.value.grad is not None
    close(model.policy.grad[:-1], dz * x.mask[..., None] / n, 1e-12)
    close(model.value.grad[:-1], 0.7 * (v[:-1] - target) * x.mask / n, 1e-12)
    assert (model.policy.grad[-1] == 0).all()
    assert (model.value.grad[-1] == 0).all()


def test_v_trace_of_what_the_policy_itself_did_is_a2c_with_half_the_value_coefficient(
    make_rollout: MakeRollout,
) -> None:
    x = make_rollout(9, 4, seed=3)
    gradients = []
    for algorithm in (VTrace(gamma=0.9, value_coef=1.0), A2C(gamma=0.9, value_coef=0.5)):
        model = Table(x, spaces.Discrete(2))
        log_pi = model.distribution(model.policy[:-1]).log_prob(x.action).detach()
        algorithm.loss(model, Batch(x.replace(behavior_log_prob=log_pi)))[0].backward()
        gradients.append((model.policy.grad, model.value.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_c_bar_above_rho_bar_is_refused_before_anything_runs() -> None:
    VTrace(rho_bar=2.0, c_bar=2.0).fits(8, memory=False, alone=True)
    with pytest.raises(UsageError, match=r"--algorithm\.c-bar 2\.0 .* at most --algorithm\.rho-bar 1\.0"):
        VTrace(c_bar=2.0).fits(8, memory=False, alone=True)


@pytest.mark.parametrize("drift", [3.0, 1e4], ids=["finite", "overflown"])
def test_what_fake_rows_hold_does_not_change_the_v_trace_gradient(make_rollout: MakeRollout, drift: float) -> None:
    x = make_rollout(8, 3, seed=3)
    x, fake = lagged(x, Table(x, spaces.Discrete(2))), x.mask == 0
    poisoned = x.replace(
        reward=x.reward + 50.0 * fake,
        action=torch.where(fake, 1 - x.action, x.action),
        behavior_log_prob=x.behavior_log_prob - drift * fake,
    )
    results = []
    for rollout in (x, poisoned):
        model = Table(rollout, spaces.Discrete(2))
        loss, metrics = VTrace().loss(model, Batch(rollout))
        loss.backward()
        results.append((model.policy.grad, model.value.grad, *metrics.values()))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
