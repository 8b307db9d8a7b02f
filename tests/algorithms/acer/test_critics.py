"""ACER's critic of continuous actions, against a golden row and at its extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.algorithms import ACER
from polyactor.algorithms.acer.critics import Retrace, with_noise
from polyactor.algorithms.acer.trust_regions import by_statistics
from polyactor.data import Batch, Distribution, Outputs, Rollout
from polyactor.models.action_space import action_spec
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
MakeRollout = Callable[..., Rollout]


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


class Box:
    """A model of one row, two dimensions and fixed σ, that is its outputs."""

    def __init__(self, x: dict[str, Any]) -> None:
        self.spec = action_spec(spaces.Box(-1, 1, (2,)), math.log(x["sigma"]))
        self.mean = tensor([x["mean_pi"], [0.0, 0.0]]).unsqueeze(1).requires_grad_()
        self.v = tensor([[x["V"]], [0.0]]).requires_grad_()
        self.h, self.b, self.const = (tensor(x[f"A_{name}"]) for name in ("quadratic_H", "quadratic_b", "const"))
        self.const.requires_grad_()

    def distribution(self, params: Tensor) -> Distribution:
        return self.spec.distribution(params)

    def advantage(self, a: Tensor) -> Tensor:
        return -0.5 * ((a @ self.h) * a).sum(-1) + a @ self.b + self.const

    def unroll(self, rollout: Rollout) -> Outputs:
        return Outputs(self.mean, self.v, self.advantage)


def sdn(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, name: str = "action"
) -> tuple[dict[str, Any], dict[str, Any], Box, Batch]:
    """The golden row: its u and a' as noise, its Q^ret and Q^opc in place of what one row alone would give."""
    x, wanted = golden("acer_continuous_sdn")
    actions = tensor([x["action_prime"], *x["u_samples"]])
    rollout = Rollout(
        observation=torch.zeros(2, 1, 1),
        is_first=torch.zeros(2, 1, dtype=torch.bool),
        action=tensor(x["action"] if name == "action" else wanted["action_low"]).view(1, 1, 2),
        reward=torch.zeros(1, 1).double(),
        terminated=torch.zeros(1, 1, dtype=torch.bool),
        behavior_log_prob=torch.zeros(1, 1).double(),
        behavior_params=tensor(x["mean_mu"]).view(1, 1, 2),
        core_state=(),
        version=torch.zeros(1, dtype=torch.int64),
    )
    noise = ((actions - tensor(x["mean_pi"])) / x["sigma"]).view(-1, 1, 1, 2)
    traces: list[Tensor] = []

    def given(self: Retrace, rollout: Rollout, v: Tensor, q: Tensor, trace: Tensor) -> Tensor:
        traces.append(self.trace_lambda * trace)
        return tensor(x["q_ret"] if len(traces) % 2 else x["q_opc"]).view(1, 1)

    monkeypatch.setattr(Retrace, "returns", given)
    x["traces"] = traces
    return x, wanted, Box(x), Batch(rollout, {"noise": noise})


@pytest.mark.parametrize(("lam", "own"), [(1.0, None), (0.9, None), (0.9, 0.6)])
def test_stochastic_dueling_golden(
    lam: float, own: float | None, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, wanted, model, batch = sdn(golden, monkeypatch)
    acer = ACER(truncation=x["c"], delta=x["delta"], entropy_coef=0.0, trace_lambda=lam, policy_trace_lambda=own)
    out = model.unroll(batch.rollout)
    rho, value, *_ = estimate = acer.critic(out).estimate(model, batch, out)
    policy = estimate.policy_loss
    assert rho.item() == pytest.approx(wanted["rho"], abs=1e-9)
    assert x["traces"][0].item() == pytest.approx(lam * wanted["retrace_c"], abs=1e-9)
    assert x["traces"][1].item() == (lam if own is None else own)
    error, of_v = x["q_ret"] - wanted["q_tilde"], wanted["v_target"] - x["V"]
    assert value.item() == pytest.approx(0.5 * error**2 + 0.5 * of_v**2, abs=1e-9)
    (gradient,) = torch.autograd.grad(value.sum(), model.v, retain_graph=True)
    assert gradient[0].item() == pytest.approx(-error - of_v, abs=1e-9)  # through Q̃ and by itself
    (gradient,) = torch.autograd.grad(value.sum(), model.const)
    assert gradient.item() == pytest.approx(0.0, abs=1e-12)  # a constant cancels: A is centred
    mean = tensor(x["mean_pi"]).view(1, 1, 2).requires_grad_()
    (ascent,) = torch.autograd.grad(-policy(model.distribution(mean)).sum(), mean)
    torch.testing.assert_close(
        ascent.flatten(), tensor(wanted["g_truncated"]) + tensor(wanted["g_correction"]), rtol=0, atol=1e-9
    )
    average = model.distribution(tensor(x["mean_avg"]).view(1, 1, 2))
    z, near = by_statistics(tensor(x["mean_pi"]).view(1, 1, 2), model.distribution, average, policy, acer.radius)
    torch.testing.assert_close(z.flatten(), tensor(wanted["z"]), rtol=0, atol=1e-9)
    assert near["projected"].item() == 1.0


@pytest.mark.parametrize("far", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("log_std", [-7.0, 3.0])
def test_actions_far_from_the_policy_stay_finite(make_rollout: MakeRollout, far: float, log_std: float) -> None:
    """Densities of 12 dimensions overflow; their ratio is clipped."""
    space = spaces.Box(-1, 1, (12,))
    x = make_rollout(6, 3, actions=space, seed=0)
    observation = spaces.Box(-1, 1, x.observation.shape[2:], np.float32)
    spec = ModelSpec(hidden=(8,), log_std_start=log_std)
    model = ActorCritic(observation, space, spec, value_head="q", averaged=True)
    mu = torch.cat([torch.full((6, 3, 12), far), torch.full((6, 3, 12), -1.0)], -1)
    x = x.replace(observation=torch.zeros(x.observation.shape), behavior_params=mu, action=x.action.float() + far)
    x = x.replace(reward=x.reward.float())
    acer = ACER()
    loss, metrics = acer.loss(
        model, with_noise(model, x, acer.dueling_samples, torch.Generator().manual_seed(0)), model.average
    )
    gradients = torch.autograd.grad(loss, tuple(model.parameters()), allow_unused=True)
    assert loss.isfinite()
    assert all(value.isfinite() for value in metrics.values())
    assert all(each.isfinite().all() for each in gradients if each is not None)


def test_traces_of_improbable_actions_are_roots_of_their_ratio(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    x, wanted, model, batch = sdn(golden, monkeypatch, "action_low")
    out = model.unroll(batch.rollout)
    rho, *_ = ACER(truncation=x["c"]).critic(out).estimate(model, batch, out)
    assert rho.item() == pytest.approx(wanted["rho_low"], abs=1e-9)
    assert x["traces"][0].item() == pytest.approx(wanted["retrace_c_low"], abs=1e-9)


def test_the_trace_of_an_action_that_is_hardly_possible_is_no_larger(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are kept finite by a bound on log ρ, here −60, whose root is taken before it."""
    x, _, model, batch = sdn(golden, monkeypatch)
    batch = replace(batch, rollout=batch.rollout.replace(behavior_params=batch.rollout.action))
    with torch.no_grad():
        model.mean[0] = batch.rollout.action[0] + math.sqrt(60) * x["sigma"]
    out = model.unroll(batch.rollout)
    rho, *_ = ACER(truncation=x["c"]).critic(out).estimate(model, batch, out)
    assert x["traces"][0].item() == pytest.approx(math.exp(-30), rel=1e-6)
    assert rho.item() == pytest.approx(math.exp(-20), rel=1e-6)


def test_choices_beside_numbers_count_whole_in_a_trace(
    make_rollout: MakeRollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ρ only the ratio of the densities of d numbers is to the power 1/d."""
    space = spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (3,))))
    observation = spaces.Box(-1, 1, (4,), np.float32)
    model = ActorCritic(observation, space, ModelSpec(hidden=(8,)), value_head="q")
    x = make_rollout(1, 1, actions=spaces.Box(-1, 1, (5,)), seed=0)
    mu = torch.tensor([math.log(9.0), 0, math.log(4.0), 0, 0, 0.5, 0.5, 0.5, 0, 0, 0]).view(1, 1, 11)
    action = torch.tensor([0.0, 0, 0.5, 0.5, 0.5]).view(1, 1, 5)
    observation_t = torch.zeros(2, 1, 4)
    x = x.replace(observation=observation_t, action=action, behavior_params=mu, reward=x.reward.float())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # π is even over choices, and N(0, I) over numbers
    traces: list[Tensor] = []

    def given(self: Retrace, rollout: Rollout, v: Tensor, q: Tensor, trace: Tensor) -> Tensor:
        traces.append(trace)
        return q

    monkeypatch.setattr(Retrace, "returns", given)
    acer = ACER()
    batch = with_noise(model, x, acer.dueling_samples, torch.Generator().manual_seed(0))
    out = model.unroll(x)
    rho, *_ = acer.critic(out).estimate(model, batch, out)
    of_choices, of_numbers = (1 / 2) / (9 / 10) * (1 / 3) / (4 / 6), math.exp(-0.5 * 3 * 0.5**2)
    assert rho.item() == pytest.approx(of_choices * of_numbers, rel=1e-5)
    assert traces[0].item() == pytest.approx(of_choices * of_numbers ** (1 / 3), rel=1e-5)
