"""Gradients of the A2C loss against formulas written down a second time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from polyactor.algorithms import A2C
from polyactor.data import Batch, Rollout
from polyactor.equations import losses
from polyactor.equations.distributions import Categorical
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from tests.helpers.outputs import Table

MakeRollout = Callable[..., Rollout]


def numpy_returns(x: Rollout, value: Tensor, gamma: float) -> np.ndarray:
    """R_t = r_t + γ_t R_{t+1}; at a fake row R is V of the final observation."""
    reward, mask, v = x.reward.numpy(), x.mask.numpy(), value.detach().numpy()
    discount = gamma * (1 - x.terminated.numpy())
    target, result = v[-1], np.zeros_like(reward)
    for t in reversed(range(len(reward))):
        target = np.where(mask[t] == 1, reward[t] + discount[t] * target, v[t])
        result[t] = target
    return result


@pytest.mark.parametrize(("name", "error"), [("squared", losses.squared_error), ("huber", losses.huber_error)])
def test_a2c_takes_the_value_loss_it_is_told(make_rollout: MakeRollout, name: Any, error: Any) -> None:
    x = make_rollout(6, 3)
    x = x.replace(reward=x.reward * 5)
    table = Table(x, spaces.Discrete(2))
    target = torch.from_numpy(numpy_returns(x, table.value, 0.99))
    expected = losses.weighted(error(table.value[:-1], target), losses.weights(x.mask, "mean"))
    assert target[x.mask == 1].sub(table.value[:-1][x.mask == 1]).abs().max() > 1
    loss, metrics = A2C(value_loss=name, value_coef=0.7).loss(table, Batch(x))
    torch.testing.assert_close(metrics["value_loss"], expected.detach())
    (got,) = torch.autograd.grad(loss, table.value)
    (wanted,) = torch.autograd.grad(0.7 * expected, table.value)
    torch.testing.assert_close(got, wanted)


def test_a2c_loss_of_nothing_but_fake_rows_is_zero(make_rollout: MakeRollout) -> None:
    x = make_rollout(1, 2)
    x = x.replace(is_first=torch.ones_like(x.is_first))
    model = Table(x, spaces.Discrete(2))
    loss, metrics = A2C(normalize_advantage=True).loss(model, Batch(x))
    loss.backward()
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in metrics.values())
    assert model.policy.grad is not None
    assert (model.policy.grad == 0).all()


def test_golden_entropy_gradient_and_the_loss_descends_its_negative(
    golden: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    inputs, outputs = golden("entropy_and_gaussian")
    logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    entropy = Categorical(logits).entropy()
    entropy.backward()
    assert entropy.item() == pytest.approx(outputs["categorical_entropy"], abs=1e-12)
    np.testing.assert_allclose(logits.grad, outputs["categorical_entropy_grad_logits"], atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a2c_gradient_by_formula(make_rollout: MakeRollout, reduction: losses.Reduction) -> None:
    """dL/dz = [(π − 1_a) A + β π (log π + H)]/N and dL/dV = 2c (V − R)/N at real rows, 0 elsewhere."""
    x = make_rollout(9, 4, actions=spaces.Discrete(3), seed=3)
    assert 0 < x.mask.mean() < 1
    assert x.terminated.any()
    model = Table(x, spaces.Discrete(3))
    a2c = A2C(gamma=0.9, value_coef=0.7, entropy_coef=0.3, reduction=reduction)
    loss, metrics = a2c.loss(model, Batch(x))
    loss.backward()

    z, v, mask = model.policy.detach().numpy()[:-1], model.value.detach().numpy()[:-1], x.mask.numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    target = numpy_returns(x, model.value, 0.9)
    taken = np.eye(3)[x.action.numpy()]
    entropy = -(p * np.log(p)).sum(-1)
    n = mask.sum() if reduction == "mean" else 1.0
    dz = (p - taken) * (target - v)[..., None] + 0.3 * p * (np.log(p) + entropy[..., None])
    assert model.policy.grad is not None
    assert model.value.grad is not None
    np.testing.assert_allclose(model.policy.grad[:-1], dz * mask[..., None] / n, atol=1e-12)
    np.testing.assert_allclose(model.value.grad[:-1], 2 * 0.7 * (v - target) * mask / n, atol=1e-12)
    assert (model.policy.grad[-1] == 0).all()
    assert (model.value.grad[-1] == 0).all()  # the bootstrap is a constant

    terms = {
        "policy_loss": (-np.log((p * taken).sum(-1)) * (target - v) * mask).sum() / n,
        "value_loss": ((target - v) ** 2 * mask).sum() / n,
        "entropy": (entropy * mask).sum() / mask.sum(),  # reported per row whatever the reduction
    }
    for name, value in terms.items():
        assert metrics[name].item() == pytest.approx(value, abs=1e-12), name
        assert not metrics[name].requires_grad
    total = terms["policy_loss"] + 0.7 * terms["value_loss"] - 0.3 * (entropy * mask).sum() / n
    assert loss.item() == pytest.approx(total, abs=1e-12)


def test_policy_term_does_not_reach_the_critic(make_rollout: MakeRollout) -> None:
    x = make_rollout(6, 3)
    model = Table(x, spaces.Discrete(2))
    A2C(value_coef=0.0).loss(model, Batch(x))[0].backward()
    assert model.value.grad is None or (model.value.grad == 0).all()
    assert model.policy.grad is not None
    assert (model.policy.grad != 0).any()


def test_with_zero_advantage_the_policy_gradient_is_that_of_the_entropy_bonus(make_rollout: MakeRollout) -> None:
    x = make_rollout(6, 3, actions=spaces.Discrete(4), end=0.0)
    model = Table(x, spaces.Discrete(4))
    x = x.replace(reward=model.value[:-1].detach())  # with γ = 0 the advantage is r − V
    A2C(gamma=0.0, entropy_coef=0.05).loss(model, Batch(x))[0].backward()
    logits = model.policy.detach()[:-1].clone().requires_grad_()
    Categorical(logits).entropy().mean().backward()
    assert model.policy.grad is not None
    assert logits.grad is not None
    torch.testing.assert_close(model.policy.grad[:-1], -0.05 * logits.grad, rtol=0, atol=1e-14)
    assert model.value.grad is None or (model.value.grad == 0).all()


@pytest.mark.parametrize(
    "actions", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,), np.float64)], ids=type
)
def test_a2c_gradcheck_by_policy_parameters(make_rollout: MakeRollout, actions: spaces.Space[Any]) -> None:
    x = make_rollout(4, 2, actions=actions, seed=5)
    model = Table(x, actions)

    def loss(policy: Tensor) -> Tensor:
        model.policy = policy
        return A2C(entropy_coef=0.1).loss(model, Batch(x))[0]

    assert torch.autograd.gradcheck(loss, model.policy)


def tiny(actions: spaces.Space[Any], **spec: Any) -> ActorCritic:
    torch.manual_seed(0)
    model = ActorCritic(spaces.Box(-1, 1, (3,), np.float32), actions, ModelSpec(**{"hidden": (4,)} | spec)).double()
    with torch.no_grad():  # heads start near zero, where a wrong gradient would hardly show
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def central_differences(f: Callable[[], float], model: ActorCritic, h: float = 1e-6) -> Tensor:
    start = parameters_to_vector(model.parameters()).detach().clone()
    gradient = torch.zeros_like(start)
    for i in range(len(start)):
        ends = []
        for sign in (1, -1):
            moved = start.clone()
            moved[i] += sign * h
            vector_to_parameters(moved, model.parameters())
            ends.append(f())
        gradient[i] = (ends[0] - ends[1]) / (2 * h)
    vector_to_parameters(start, model.parameters())
    return gradient


def gaussian_terms(params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = params.chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    return normal.log_prob(action).sum(-1), normal.entropy().sum(-1)


def categorical_terms(params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    categorical = torch.distributions.Categorical(logits=params)
    return categorical.log_prob(action), categorical.entropy()


@pytest.mark.parametrize(
    ("actions", "spec"),
    [
        (spaces.Discrete(3), {}),
        (spaces.Discrete(3), {"core": "lstm", "core_size": 3}),
        (spaces.Box(-1, 1, (2,), np.float64), {"share_torso": False}),
        (spaces.Box(-1, 1, (2,), np.float64), {"log_std": "state"}),
    ],
    ids=["mlp", "lstm", "separate", "state-dependent-sigma"],
)
def test_a2c_gradient_is_that_of_the_loss_with_frozen_advantages(
    make_rollout: MakeRollout, actions: spaces.Space[Any], spec: dict[str, Any]
) -> None:
    model = tiny(actions, **spec)
    x = make_rollout(5, 2, actions=actions, core_state=model.initial_state(2), seed=7, end=0.4)
    assert x.mask.mean() < 1
    a2c = A2C(gamma=0.9, value_coef=0.7, entropy_coef=0.1)
    a2c.loss(model, Batch(x))[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    value = model.unroll(x).value
    target = torch.from_numpy(numpy_returns(x, value, 0.9))
    advantage, n = target - value[:-1].detach(), x.mask.sum()
    terms = gaussian_terms if isinstance(actions, spaces.Box) else categorical_terms

    @torch.no_grad()
    def frozen() -> float:
        out = model.unroll(x)
        log_prob, entropy = terms(out.policy[:-1], x.action)
        rows = -log_prob * advantage + 0.7 * (target - out.value[:-1]) ** 2 - 0.1 * entropy
        return float((rows * x.mask).sum() / n)

    torch.testing.assert_close(gradient, central_differences(frozen, model), rtol=1e-6, atol=1e-8)

    # Were advantage and target not constants, the gradient would be another one.
    attached = central_differences(lambda: float(a2c.loss(model, Batch(x))[0].detach()), model)
    assert (gradient - attached).abs().max() > 1e-2


def test_duplicated_batch_has_the_same_mean_loss_gradient_and_twice_the_sums(make_rollout: MakeRollout) -> None:
    x = make_rollout(6, 3, seed=2)
    twice = x.replace(
        **{
            name: torch.cat([getattr(x, name)] * 2, 1)
            for name in ("observation", "is_first", "action", "reward", "terminated", "behavior_log_prob")
        }
    )
    for a2c, factor in (
        (A2C(), 1.0),
        (A2C(normalize_advantage=True), 1.0),
        (A2C(reduction="sum"), 2.0),
    ):
        gradients = []
        for rollout in (x, twice):
            model = tiny(spaces.Discrete(2))
            a2c.loss(model, Batch(rollout))[0].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(gradients[1], factor * gradients[0], rtol=1e-10, atol=1e-12)


def test_what_fake_rows_hold_does_not_change_the_gradient(make_rollout: MakeRollout) -> None:
    x = make_rollout(8, 3, seed=3)
    fake = x.mask == 0
    assert fake.any()
    poisoned = x.replace(reward=x.reward + 50.0 * fake, action=torch.where(fake, 1 - x.action, x.action))
    gradients = []
    for rollout in (x, poisoned):
        model = Table(rollout, spaces.Discrete(2))
        A2C().loss(model, Batch(rollout))[0].backward()
        gradients.append((model.policy.grad, model.value.grad))
    for clean, dirty in zip(*gradients, strict=True):
        assert torch.equal(clean, dirty)


def test_degenerate_logits_give_finite_loss_and_gradient(make_rollout: MakeRollout) -> None:
    x = make_rollout(4, 2, dtype=torch.float32)
    model = Table(x, spaces.Discrete(2))
    model.policy = torch.tensor([1e4, -1e4]).expand(5, 2, 2).clone().requires_grad_()
    loss, metrics = A2C().loss(model, Batch(x.replace(action=torch.ones(4, 2, dtype=torch.int64))))
    loss.backward()
    assert math.isfinite(loss.item())
    assert metrics["entropy"].item() == 0.0
    assert model.policy.grad is not None
    assert model.policy.grad.isfinite().all()
