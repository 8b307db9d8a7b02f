"""Loss terms: golden vectors, constants and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.equations import losses

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
quick = settings(max_examples=60, deadline=None)


def close(a: Tensor, b: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=atol)


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


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mean_of_nothing_is_zero_and_so_is_its_gradient(reduction: losses.Reduction) -> None:
    x = torch.ones(2, 2, requires_grad=True)
    loss = losses.weighted(x, losses.weights(torch.zeros(2, 2), reduction))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert (x.grad == 0).all()


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
