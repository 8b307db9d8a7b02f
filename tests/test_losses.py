"""Loss terms, and the gradients of the A2C and V-trace losses against formulas written down a second time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from polyactor.algorithms import A2C, ALGORITHMS, VTrace
from polyactor.data import Batch, Distribution, Outputs, Rollout
from polyactor.equations import losses, returns
from polyactor.equations.distributions import Categorical
from polyactor.errors import UsageError
from polyactor.models.action_space import action_spec
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec

MakeRollout = Callable[..., Rollout]
Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]

quick = settings(max_examples=60, deadline=None)


def close(a: Tensor, b: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=atol)


class Table:
    """A model that is its outputs: free logits ``[T+1, B, P]`` and values ``[T+1, B]``, to differentiate by."""

    def __init__(self, rollout: Rollout, actions: spaces.Space[Any], seed: int = 0) -> None:
        self.spec = action_spec(actions)
        generator = torch.Generator().manual_seed(seed)
        shape = rollout.is_first.shape
        self.policy = torch.randn((*shape, self.spec.params), generator=generator, dtype=torch.float64)
        self.value = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.policy.requires_grad_()
        self.value.requires_grad_()

    def distribution(self, params: Tensor) -> Distribution:
        return self.spec.distribution(params)

    def unroll(self, rollout: Rollout) -> Outputs:
        return Outputs(self.policy, self.value)


def numpy_returns(x: Rollout, value: Tensor, gamma: float) -> np.ndarray:
    """R_t = r_t + γ_t R_{t+1}; at a fake row R is V of the final observation."""
    reward, mask, v = x.reward.numpy(), x.mask.numpy(), value.detach().numpy()
    discount = gamma * (1 - x.terminated.numpy())
    target, result = v[-1], np.zeros_like(reward)
    for t in reversed(range(len(reward))):
        target = np.where(mask[t] == 1, reward[t] + discount[t] * target, v[t])
        result[t] = target
    return result


# -- the terms ---------------------------------------------------------------------------------------------------------


def test_mean_is_over_real_rows_and_sum_skips_fake_ones() -> None:
    x, mask = torch.tensor([[1.0, 2.0], [3.0, 100.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert losses.weighted(x, losses.weights(mask, "mean")) == 2.0
    assert losses.weighted(x, losses.weights(mask, "sum")) == 6.0


def test_advantages_and_targets_are_constants_to_their_terms() -> None:
    ours, given = torch.ones(2, 2, requires_grad=True), torch.full((2, 2), 3.0, requires_grad=True)
    for term in (losses.policy_gradient, losses.squared_error):
        (term(ours, given).sum()).backward()
        assert given.grad is None
    assert ours.grad is not None
    assert (ours.grad == -3.0 + 2 * (1.0 - 3.0)).all()


def test_huber_error_is_the_square_up_to_1_and_linear_beyond() -> None:
    value = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(41, dtype=torch.float64, requires_grad=True)
    error = losses.huber_error(value, target)
    torch.testing.assert_close(error, 2 * torch.nn.functional.huber_loss(value, target, reduction="none"))
    near = value.abs() <= 1
    torch.testing.assert_close(error[near], losses.squared_error(value, target)[near])
    (gradient,) = torch.autograd.grad(error.sum(), value)
    torch.testing.assert_close(gradient, 2 * value.detach().clamp(-1, 1))
    assert not losses.huber_error(value.detach(), target).requires_grad


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


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mean_of_nothing_is_zero_and_so_is_its_gradient(reduction: losses.Reduction) -> None:
    x = torch.ones(2, 2, requires_grad=True)
    loss = losses.weighted(x, losses.weights(torch.zeros(2, 2), reduction))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert (x.grad == 0).all()


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


def test_normalized_advantages_have_mean_0_and_population_deviation_1_over_real_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(5, 4, generator=generator), torch.rand(5, 4, generator=generator).round()
    real = losses.normalized(x, mask)[mask == 1]
    assert real.mean().item() == pytest.approx(0, abs=1e-6)
    assert real.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    poisoned = losses.normalized(torch.where(mask == 1, x, torch.tensor(1e6)), mask)[mask == 1]
    torch.testing.assert_close(poisoned, real)
    one = torch.zeros_like(mask)
    one[0, 0] = 1
    assert losses.normalized(x, one)[0, 0] == x[0, 0]  # one row has no deviation
    assert losses.normalized(torch.ones(3, 2), torch.ones(3, 2)).abs().max() == 0


def test_golden_clipped_surrogate_and_error(golden: Golden) -> None:
    x, outputs = golden("ppo_clip")
    rho, advantage, v_old, v_new, target = (
        torch.tensor(x[name], dtype=torch.float64) for name in ("ratio", "adv", "v_old", "v_new", "ret")
    )
    log_prob = rho.log().requires_grad_()  # of μ = 1
    # exp(log ρ) may miss the kink by a rounding; the gradient there is half the test's point.
    ratio = rho + (log_prob.exp() - log_prob.exp().detach())
    loss = losses.clipped_surrogate(ratio, advantage, x["eps"])
    loss.sum().backward()
    close(loss, outputs["policy_loss_per_sample"])
    ones = torch.ones_like(loss)
    close(losses.weighted(loss, losses.weights(ones, "mean")), outputs["policy_loss_mean"])
    assert log_prob.grad is not None
    close(log_prob.grad, outputs["dloss_dlogp"])
    assert (log_prob.grad == 0).tolist() == [bool(flat) for flat in outputs["in_flat_zone"]]
    close(losses.normalized(advantage, ones), outputs["adv_norm_ddof0"], 1e-7)  # 1e-8 is added to the deviation
    value = 0.5 * losses.clipped_error(v_new, target, v_old, x["eps"])
    close(value, outputs["value_loss_per_sample"])
    close(value.mean(), outputs["value_loss_mean"])


@quick
@given(st.floats(0.01, 5), st.floats(-3, 3), st.floats(0.05, 0.9))
def test_clipped_surrogate_is_flat_exactly_where_it_should_not_go_further(rho: float, a: float, clip: float) -> None:
    assume(min(abs(rho - 1 - clip), abs(rho - 1 + clip)) > 1e-4)
    assume(abs(a) > 1e-3)
    ratio, advantage = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (rho, a))
    loss = losses.clipped_surrogate(ratio, advantage, clip)
    loss.backward()
    flat = rho > 1 + clip if a > 0 else rho < 1 - clip
    assert ratio.grad is not None
    assert ratio.grad.item() == (0 if flat else -a)
    assert loss.item() == pytest.approx(-a * (1 + math.copysign(clip, a) if flat else rho), abs=1e-12)
    assert loss.item() >= -rho * a - 1e-12  # a lower bound of what is maximised
    assert advantage.grad is None
    assert torch.autograd.gradcheck(lambda ratio: losses.clipped_surrogate(ratio, advantage, clip), ratio)


@quick
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 1))
def test_clipped_error_never_rewards_a_change_beyond_the_clip(v: float, old: float, target: float, clip: float) -> None:
    assume(abs(abs(v - old) - clip) > 1e-3)
    value, v_old, r = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (v, old, target))
    near = min(max(v, old - clip), old + clip)
    assume(abs((target - near) ** 2 - (target - v) ** 2) > 1e-3 or near == pytest.approx(v))
    loss = losses.clipped_error(value, r, v_old.detach(), clip)
    loss.backward()
    assert loss.item() == pytest.approx(max((target - v) ** 2, (target - near) ** 2), abs=1e-9)
    flat = (target - near) ** 2 > (target - v) ** 2 and near != pytest.approx(v)
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(0 if flat else 2 * (v - target), abs=1e-9)
    assert r.grad is None
    assert losses.clipped_error(value, r, v_old, None).item() == pytest.approx((target - v) ** 2)


def test_golden_entropy_gradient_and_the_loss_descends_its_negative(
    golden: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    inputs, outputs = golden("entropy_and_gaussian")
    logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    entropy = Categorical(logits).entropy()
    entropy.backward()
    assert entropy.item() == pytest.approx(outputs["categorical_entropy"], abs=1e-12)
    np.testing.assert_allclose(logits.grad, outputs["categorical_entropy_grad_logits"], atol=1e-12)


# -- the A2C loss, by what it says of free outputs ---------------------------------------------------------------------


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


def test_loss_terms_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1], [0, 1], [1, 0]], dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: losses.weighted(losses.policy_gradient(x, y), losses.weights(mask, "mean")), x
    )
    assert torch.autograd.gradcheck(
        lambda x: losses.weighted(losses.squared_error(x, y), losses.weights(mask, "mean")), x
    )


# -- the V-trace loss --------------------------------------------------------------------------------------------------


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


# -- the A2C loss through a network ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ALGORITHMS)
def test_entropy_coefficient_anneals_with_progress(name: str) -> None:
    algorithm: Any = ALGORITHMS[name](entropy_coef=0.1, entropy_coef_end=0.02)  # type: ignore[call-arg]
    assert [algorithm.at(p).entropy_coef for p in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([0.1, 0.06, 0.02, 0.02])
    assert replace(algorithm, entropy_coef_end=None).at(0.7).entropy_coef == 0.1
    assert algorithm.at(0.5) == replace(algorithm, entropy_coef=algorithm.at(0.5).entropy_coef)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_metrics_returned_are_those_announced_and_constants(make_rollout: MakeRollout, name: str) -> None:
    algorithm, x = ALGORITHMS[name](), make_rollout(5, 2, dtype=torch.float32)
    x = x.replace(behavior_params=torch.zeros(5, 2, 2))
    space = spaces.Box(-1, 1, x.observation.shape[2:], np.float32)
    averaged = algorithm.averaging is not None
    model = ActorCritic(
        space, spaces.Discrete(2), ModelSpec(hidden=(4,)), value_head=algorithm.outputs[1], averaged=averaged
    )
    batch = next(algorithm.batches(model, x, None, torch.Generator().manual_seed(0)))
    metrics = algorithm.loss(model, batch, model.average)[1]
    assert tuple(metrics) == algorithm.metrics
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


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
