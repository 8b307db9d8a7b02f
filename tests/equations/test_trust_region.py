"""Trust regions of all parameters: golden vectors and explicit matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.equations import losses, trust_region
from polyactor.equations.distributions import Categorical, Gaussian

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def close(ours: Tensor, theirs: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours.detach(), tensor(theirs), rtol=0, atol=atol)


class Linear:
    """The golden policy, its objective and its distances, by the flat W."""

    def __init__(self, x: dict[str, Any]) -> None:
        self.w = tensor(x["W"]).requires_grad_()
        self.rows, self.action, self.advantage = tensor(x["X"]), torch.tensor(x["actions"]), tensor(x["advantages"])
        self.pi, self.average = self.policy(self.w), self.policy(tensor(x["W_avg"]))

    def policy(self, w: Tensor) -> Categorical:
        return Categorical(self.rows @ w.view(3, 2).T)

    def slope(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.w, retain_graph=True)[0].flatten()

    @property
    def g(self) -> Tensor:
        return self.slope((self.pi.log_prob(self.action) * self.advantage).mean())

    @property
    def kl(self) -> Tensor:
        return self.pi.kl_from(self.average).mean()

    def product(self, damping: float) -> trust_region.Product:
        old = Categorical(self.pi.logits.detach())
        return trust_region.fisher(self.pi.kl_from(old).mean(), (self.w,), damping)


NAME = "full_trust_region_parameter_space"


def test_projection_by_parameters_golden(golden: Golden) -> None:
    x, wanted = golden(NAME)
    case = Linear(x)
    g, k = case.g, case.slope(case.kl)
    close(g, wanted["grad"])
    close(k, wanted["k"])
    close(losses.trust_region(g, k, x["delta_linear"]), wanted["linear_z"])


def test_fisher_products_golden(golden: Golden) -> None:
    x, wanted = golden(NAME)
    product = Linear(x).product(0.0)
    close(torch.stack([product(row) for row in torch.eye(6, dtype=torch.float64)]), wanted["fisher"])
    damped = Linear(x).product(x["damping"])
    close(damped(tensor([1.0] * 6)) - product(tensor([1.0] * 6)), [x["damping"]] * 6)


def test_natural_step_golden(golden: Golden) -> None:
    x, wanted = golden(NAME)
    case = Linear(x)
    product, g = case.product(x["damping"]), case.g
    s = trust_region.conjugate_gradient(product, g, 50, 1e-24)
    close(s, wanted["natural_direction"])
    assert (product(s) - g).norm() < 1e-8
    step = trust_region.natural_step(product, g, x["max_kl"], 50)
    close(step, wanted["natural_step"], 1e-6)
    assert (0.5 * step @ product(step)).item() == pytest.approx(wanted["kl_quadratic"], rel=1e-6)  # the whole of δ
    after = case.policy(case.w.detach().flatten() + step)
    assert after.kl_from(case.pi).mean().item() == pytest.approx(wanted["kl_true_after_step"], abs=1e-8)


def test_step_around_the_average_golden(golden: Golden) -> None:
    x, wanted = golden(NAME)
    case = Linear(x)
    product, g, k, kl = case.product(x["damping"]), case.g, case.slope(case.kl), case.kl.detach()
    assert kl.item() == pytest.approx(wanted["kl_avg_before"], abs=1e-9)
    step = trust_region.step_around(product, g, k, kl, x["delta_avg"], 50)
    close(step, wanted["step_around_average"], 1e-5)
    assert (kl + k @ step + 0.5 * step @ product(step)).item() == pytest.approx(x["delta_avg"], abs=1e-6)
    after = case.policy(case.w.detach().flatten() + step)
    assert after.kl_from(case.average).mean().item() == pytest.approx(wanted["kl_avg_after_average_step"], abs=1e-5)
    same = trust_region.step_around(product, g, torch.zeros_like(k), torch.zeros_like(kl), x["max_kl"], 50)
    close(same, trust_region.natural_step(product, g, x["max_kl"], 50), 1e-12)  # with π_average = π it is TRPO's


def positive(seed: int, n: int) -> Tensor:
    m = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return m @ m.T + 0.1 * torch.eye(n, dtype=torch.float64)


@given(seed=st.integers(0, 1000), n=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_conjugate_gradients_solve(seed: int, n: int) -> None:
    f = positive(seed, n)
    b = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    x = trust_region.conjugate_gradient(f.mv, b, 10 * n, 1e-26)
    assert (f @ x - b).norm() < 1e-8 * max(1.0, float(b.norm()))
    assert (trust_region.conjugate_gradient(f.mv, torch.zeros_like(b)) == 0).all()


@given(seed=st.integers(0, 1000), delta=st.floats(0.01, 1.0), kl=st.floats(0.0, 0.5))
@settings(max_examples=60, deadline=None)
def test_no_point_of_the_region_climbs_higher(seed: int, delta: float, kl: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    f = positive(seed, 4)
    g, k = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    step = trust_region.step_around(f.mv, g, k, tensor(kl), delta, 100)

    def model(at: Tensor) -> Tensor:
        return kl + at @ k + 0.5 * ((at @ f) * at).sum(-1)

    back = -torch.linalg.solve(f, k)
    if model(back) > delta:  # no step ends within: the nearest is taken
        close(step, back.numpy(), 1e-4)
        return
    assert model(step) == pytest.approx(delta, abs=1e-4 * (1 + delta))
    others = back + torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    inside = others[model(others) <= delta]
    assert not len(inside) or (inside @ g).max() <= step @ g + 1e-4


def test_with_nothing_to_climb_it_stays_or_comes_back() -> None:
    f, none, k = positive(0, 3), torch.zeros(3, dtype=torch.float64), tensor([0.1, 0.2, -0.1])
    assert (trust_region.natural_step(f.mv, none, 0.1) == 0).all()
    assert (trust_region.step_around(f.mv, none, k, tensor(0.01), 0.1) == 0).all()
    back = trust_region.step_around(f.mv, none, k, tensor(0.11), 0.1, 50)
    close(back, -torch.linalg.solve(f, k).numpy(), 1e-4)


def searched(
    slope: float, kl: float, climbs: bool = True, delta: float = 0.1, start: float = 0.0
) -> tuple[float, float]:
    """Of one parameter at 0: an objective ``slope · θ`` and a divergence ``start + kl · θ²``, from Δ = 1."""
    theta = (torch.zeros(1, dtype=torch.float64),)

    def evaluate() -> tuple[float, float]:
        return slope * theta[0].item(), start + kl * theta[0].item() ** 2

    step, after = trust_region.line_search(tensor([1.0]), theta, evaluate, delta, climbs=climbs)
    assert theta[0].item() == 0.0
    assert after == pytest.approx(start + kl * step.item() ** 2)
    return step.item(), after


def test_the_longest_step_that_may_be_taken_is() -> None:
    assert searched(1.0, 0.14)[0] == 1.0
    assert searched(1.0, 0.16)[0] == 0.5  # beyond 1.5 δ
    assert searched(1.0, 4.0)[0] == 0.125
    assert searched(-1.0, 0.01)[0] == 0.0  # it leads down
    assert searched(1.0, 1e9) == (0.0, 0.0)
    assert searched(1.0, 0.0, start=0.5)[0] == 1.0  # from outside, if it leads no further out
    assert searched(1.0, 0.1, start=0.5)[0] == 0.0
    assert searched(-1.0, -0.1, climbs=False, start=0.5)[0] == 1.0  # back, whatever that costs
    assert searched(1.0, 0.1, climbs=False, start=0.0)[0] == 0.0


def test_parameters_are_put_back_exactly() -> None:
    theta = (torch.rand(3, requires_grad=True), torch.rand(2, 2, requires_grad=True))
    before = [each.detach().clone() for each in theta]
    with trust_region.displaced(theta, 0.1 * torch.ones(7)):
        assert all((each > old).all() for each, old in zip(theta, before, strict=True))
    assert all(torch.equal(each, old) for each, old in zip(theta, before, strict=True))


def test_gaussians_are_differentiated_twice() -> None:
    """By mean and log σ: F of a normal is diag(1/σ², 2)."""
    theta = (torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True),)
    pi = Gaussian(theta[0][:1], theta[0][1:])
    old = Gaussian(pi.mean.detach(), pi.log_std.detach())
    product = trust_region.fisher(pi.kl_from(old), theta, 0.0)
    close(product(tensor([1.0, 0.0])), [math.exp(0.4), 0.0])
    close(product(tensor([0.0, 1.0])), [0.0, 2.0])
