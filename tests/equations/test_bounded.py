"""Policies within bounds: golden numbers of scipy, their gradients, their draws and the bounds themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from polyactor.envs.conversion import Conversion
from polyactor.equations.bounded import MARGIN, Beta, SquashedGaussian
from polyactor.equations.distributions import Gaussian, Mixed
from polyactor.models.action_space import action_spec

DRAWS = 1_000_000


class Golden(NamedTuple):
    """A policy by two parameters, an action of it, another policy, and what scipy says of them."""

    own: tuple[float, float]
    action: float
    other: tuple[float, float]
    log_prob: float
    entropy: float
    kl: float


BETA: list[Golden] = [
    Golden((1.2, 1.5), -0.3, (1.5, 1.2), -0.4775261822122423, 0.649481509889228, 0.09765896117122916),
    Golden((1.0001, 1.0001), 0.9, (3.0, 2.0), -0.6932518866671358, 0.6931471770098105, 0.23487332000506328),
    Golden((3.5, 2.0), 0.25, (3.6, 1.9), -0.09214514141436847, 0.3944568986128568, 0.004982437316221593),
    Golden((40.0, 7.0), 0.7, (30.0, 6.0), 1.3274582226742968, -0.8856688315467257, 0.06480563075585138),
    Golden((900.0, 1100.0), -0.1, (950.0, 1000.0), 2.886411180996392, -2.386794728607301, 5.547984782030908),
    Golden((25.0, 25000.0), -0.998, (25.0, 24000.0), 6.9022625647060085, -6.4200541173469805, 0.021095991308368426),
]
"""α and β; a; α and β of the other."""
SQUASHED: list[Golden] = [
    Golden((0.3, 0.5), 0.2, (0.1, 0.6), -0.20605520896471263, 0.42624943932051207, 0.11767844320604538),
    Golden((0.0, 1.0), -2.5, (0.5, 0.9), -0.4168021973463265, 0.6698041182217966, 0.1353605156578264),
    Golden((-1.2, 1.7), 3.0, (-1.0, 1.5), 0.1171871107018756, -0.31298533741758217, 0.02135691458030353),
    Golden((4.0, 0.3), 4.4, (3.8, 0.35), 6.810152464544496, -6.399542922298044, 0.2486270979505198),
    Golden((-0.7, 0.05), -0.72, (-0.69, 0.06), 2.475760761802074, -2.0329212331702315, 0.05767844320604546),
    Golden((0.0, 0.8745), 0.0, (0.0, 1.2), -0.7848355486811924, 0.6836355541330584, 0.12505929605300065),
]
"""μ and σ; u; μ and σ of the other."""


def double(*x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw(shape: Tensor) -> Tensor:
    """The parameter of a Beta policy whose α is given."""
    x = shape - 1
    return x + (-(-x).expm1()).log()


def beta(alpha: float, beta: float) -> Beta:
    return Beta(raw(double(alpha)), raw(double(beta)))


def squashed(mean: float, std: float) -> SquashedGaussian:
    return SquashedGaussian(double(mean), double(math.log(std)))


MAKE: list[tuple[Callable[[float, float], Any], Golden]] = [
    *((beta, each) for each in BETA),
    *((squashed, each) for each in SQUASHED),
]


@pytest.mark.parametrize(("make", "x"), MAKE)
def test_golden(make: Callable[[float, float], Any], x: Golden) -> None:
    pi, other = make(*x.own), make(*x.other)
    assert pi.log_prob(double(x.action)).item() == pytest.approx(x.log_prob, abs=1e-9)
    assert pi.entropy().item() == pytest.approx(x.entropy, abs=1e-9)
    assert pi.kl_from(other).item() == pytest.approx(x.kl, abs=1e-9)


shapes = st.floats(1.001, 5_000)
inside = st.floats(-0.999, 0.999)
means, stds = st.floats(-6, 6), st.floats(0.01, 1.8)


@settings(deadline=None, max_examples=25)
@given(shapes, shapes, inside)
def test_beta_is_that_of_scipy(a: float, b: float, x: float) -> None:
    reference = pytest.importorskip("scipy.stats").beta(a, b, loc=-1, scale=2)
    pi = beta(a, b)
    assert pi.log_prob(double(x)).item() == pytest.approx(reference.logpdf(x), rel=1e-9, abs=1e-9)
    assert pi.entropy().item() == pytest.approx(reference.entropy(), rel=1e-9, abs=1e-9)
    assert pi.mode().item() == pytest.approx(reference.mean(), abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(shapes, shapes, shapes, shapes, inside)
def test_a_beta_policy_mirrored_is_the_same(a: float, b: float, c: float, d: float, x: float) -> None:
    pi, mirrored, other, other_mirrored = beta(a, b), beta(b, a), beta(c, d), beta(d, c)
    torch.testing.assert_close(pi.log_prob(double(x)), mirrored.log_prob(double(-x)))
    torch.testing.assert_close(pi.entropy(), mirrored.entropy())
    torch.testing.assert_close(pi.kl_from(other), mirrored.kl_from(other_mirrored))
    assert pi.kl_from(other) >= -1e-9
    assert abs(pi.kl_from(pi).item()) < 1e-9
    assert pi.entropy() <= math.log(2) + 1e-12
    assert pi.mode() == -mirrored.mode()


@settings(deadline=None, max_examples=15)
@given(means, stds, means, stds)
def test_squashed_densities_and_entropies_are_sums_over_a_fine_grid(m: float, s: float, m_o: float, s_o: float) -> None:
    pi, other = squashed(m, s), squashed(m_o, s_o)
    u = torch.linspace(m - 9 * s, m + 9 * s, 20_001, dtype=torch.float64).unsqueeze(-1)
    slope = 1 / u.squeeze(-1).cosh() ** 2
    log_p = pi.log_prob(u)
    mass = (log_p.exp() * slope).double()
    assert torch.trapezoid(mass, u[:, 0]).item() == pytest.approx(1, abs=1e-9)
    assert pi.entropy().item() == pytest.approx(-torch.trapezoid(mass * log_p, u[:, 0]).item(), abs=1e-8)
    torch.testing.assert_close(
        pi.kl_from(other), Gaussian(pi.mean, pi.log_std).kl_from(Gaussian(other.mean, other.log_std))
    )
    assert pi.entropy() <= math.log(2) + 1e-9


@settings(deadline=None, max_examples=15)
@given(*[st.floats(1.5, 30)] * 4)
def test_beta_entropies_and_divergences_are_sums_over_a_fine_grid(a: float, b: float, c: float, d: float) -> None:
    pi, other = beta(a, b), beta(c, d)
    t = torch.linspace(-7.2, 7.2, 20_001, dtype=torch.float64)  # a = tanh(t) leaves no edge to the integrals
    x, slope = t.tanh().unsqueeze(-1), 1 / t.cosh() ** 2
    log_p, log_o = pi.log_prob(x), other.log_prob(x)
    of_pi, of_other = log_p.exp() * slope, log_o.exp() * slope
    assert torch.trapezoid(of_pi, t).item() == pytest.approx(1, abs=1e-6)
    assert pi.entropy().item() == pytest.approx(-torch.trapezoid(of_pi * log_p, t).item(), abs=1e-6)
    assert pi.kl_from(other).item() == pytest.approx(
        torch.trapezoid(of_other * (log_o - log_p), t).item(), rel=1e-6, abs=1e-5
    )


@pytest.mark.parametrize("kind", ["beta", "squashed"])
def test_gradients(kind: Any) -> None:
    spec = action_spec(spaces.Box(-1, 1, (2,)), kind=kind)
    params = torch.randn(3, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    other = spec.distribution(torch.randn(3, 4, generator=generator(1), dtype=torch.float64))
    action = spec.distribution(params.detach()).sample(generator())
    for value in (
        lambda p: spec.distribution(p).log_prob(action),
        lambda p: spec.distribution(p).entropy(),
        lambda p: spec.distribution(p).kl_from(other),
    ):
        assert gradcheck(value, params)
        assert gradgradcheck(value, params)  # products with the Fisher matrix are second derivatives


def draws(pi: Any, way: str, seed: int = 0) -> Tensor:
    """Actions of a batch of equal policies, drawn in one of two ways."""
    if way == "sample":
        return pi.sample(generator(seed))
    lead = (pi.raw_alpha if isinstance(pi, Beta) else pi.mean).shape[:-1]
    return pi.from_noise(torch.randn(*lead, pi.noise, generator=generator(seed)))


@pytest.mark.parametrize("way", ["sample", "noise"])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.3, 4.0), (60.0, 9.0)])
def test_beta_draws_have_its_distribution(way: str, a: float, b: float) -> None:
    """The largest distance of two cumulative distributions, by Kolmogorov and Smirnov."""
    n = 40_000
    pi = Beta(raw(double(a, b)).expand(n, 2).float(), raw(double(b, a)).expand(n, 2).float())
    found = draws(pi, way)
    assert found.dtype == torch.float32
    grid = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    one = Beta(raw(double(a)), raw(double(b)))
    cdf = torch.cumulative_trapezoid(one.log_prob(grid.unsqueeze(-1)).exp(), grid)
    for actions in (found[:, 0], -found[:, 1]):  # the second one mirrored
        there = np.interp(np.sort(actions.double().numpy()), grid[1:].numpy(), cdf.numpy())
        assert np.abs(there - (np.arange(n) + 0.5) / n).max() < 2 / n**0.5
    assert np.corrcoef(found.T.numpy())[0, 1] == pytest.approx(0, abs=4 / n**0.5)


EXTREMES = [(-1e4, -1e4), (1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (3.0, -3.0), (-3.0, 3.0), (0.0, 0.0), (50.0, 0.0)]
"""Parameters of both distributions; with them a policy reaches its bounds, or is as even or as sharp as can be."""
BOXES = [
    spaces.Box(-0.1, 0.3, (8,), np.float32),
    spaces.Box(1 / 3, 1e5 / 3, (8,), np.float64),
    spaces.Box(np.float16(-0.7), np.float16(2.3), (8,), np.float16),
]


@pytest.mark.parametrize("kind", ["beta", "squashed"])
def test_no_bound_is_exceeded(kind: Any) -> None:
    """Nor in the dtype of an environment, after rounding."""
    spec = action_spec(spaces.Box(-1, 1, (len(EXTREMES),)), kind=kind)
    own = torch.tensor(EXTREMES).clamp(*((-1e4, 1e4) if kind == "beta" else (-20.0, 3.0))).T.flatten()
    n = DRAWS // len(EXTREMES)
    pi = spec.distribution(own.expand(n, -1))
    action = pi.sample(generator())
    assert action.shape == (n, len(EXTREMES))
    assert pi.log_prob(action).isfinite().all()
    sent = spec.sent(action)
    assert (sent.abs() <= 1).all()
    assert kind != "beta" or (sent.abs() <= 1 - MARGIN / 2).all()
    for box in BOXES:
        decoded = np.stack(Conversion(box, box, "X").decode(sent.numpy()))
        assert decoded.dtype == box.dtype
        assert ((decoded >= box.low) & (decoded <= box.high)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["beta", "squashed"])
def test_extremes_are_finite(kind: Any, dtype: torch.dtype) -> None:
    spec = action_spec(spaces.Box(-1, 1, (1,)), kind=kind)
    for a in (-1.0, -0.5, 0.0, 1.0) if kind == "beta" else (-90.0, -1.0, 0.0, 40.0):
        for own in EXTREMES:
            params = torch.tensor(own, dtype=dtype)
            params = (params if kind == "beta" else params.clamp(-20, 3)).requires_grad_()
            pi = spec.distribution(params)
            kl = pi.kl_from(spec.distribution(torch.zeros(2, dtype=dtype)))
            of_all = [pi.log_prob(torch.tensor([a], dtype=dtype)), pi.entropy(), kl]
            assert all(each.isfinite() and each.dtype == dtype for each in of_all)
            (gradient,) = torch.autograd.grad(sum(of_all), params)
            assert gradient.isfinite().all()
            assert pi.mode().isfinite().all()


def test_float32_loses_no_digits_of_sharp_policies() -> None:
    """Differences of log-gamma functions of 10⁵ would be wrong in the second digit."""
    params = torch.tensor([1e5, 3e5])
    wide = Beta(*params.double().split(1)), Beta(*(params.double() + 100).split(1))
    narrow = Beta(*params.split(1)), Beta(*(params + 100).split(1))
    a = torch.tensor([-0.5])
    torch.testing.assert_close(narrow[0].log_prob(a).double(), wide[0].log_prob(a.double()), rtol=1e-6, atol=0)
    torch.testing.assert_close(narrow[0].entropy().double(), wide[0].entropy(), rtol=1e-6, atol=0)
    torch.testing.assert_close(narrow[0].kl_from(narrow[1]).double(), wide[0].kl_from(wide[1]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["beta", "squashed"])
def test_choices_beside_numbers(kind: Any) -> None:
    """What is independent adds up; tanh is of numbers alone, and the critic sees what is sent."""
    box = spaces.Box(-1, 1, (2,))
    mixed, alone = (
        action_spec(spaces.Tuple([spaces.MultiDiscrete([3, 2]), box]), kind=kind),
        action_spec(box, kind=kind),
    )
    params = torch.randn(7, mixed.params, generator=generator())
    pi, numbers = mixed.distribution(params), alone.distribution(params[:, 5:])
    assert isinstance(pi, Mixed)
    action = pi.sample(generator())
    assert action.shape == (7, 4)
    torch.testing.assert_close(
        pi.log_prob(action), pi.choices.log_prob(action[:, :2]) + numbers.log_prob(action[:, 2:])
    )
    torch.testing.assert_close(pi.entropy(), pi.choices.entropy() + numbers.entropy())
    noise = torch.randn(7, pi.noise, generator=generator())
    assert torch.equal(pi.from_noise(noise)[:, 2:], numbers.from_noise(noise[:, 2:]))  # type: ignore[attr-defined]
    sent = mixed.sent(action)
    assert torch.equal(sent[:, :2], action[:, :2])
    assert torch.equal(sent[:, 2:], action[:, 2:].tanh() if kind == "squashed" else action[:, 2:])
    encoded = mixed.encoded(action)
    assert encoded.shape == (7, mixed.encoding)
    assert torch.equal(encoded[:, 5:], sent[:, 2:])


def test_greedy_actions() -> None:
    params = double(2.0, -1.0, 0.5, 0.3)
    box = spaces.Box(-1, 1, (2,))
    pi = action_spec(box, kind="beta").distribution(params)
    assert isinstance(pi, Beta)
    torch.testing.assert_close(pi.mode(), 2 * pi.alpha / (pi.alpha + pi.beta) - 1)
    spec = action_spec(box, kind="squashed")
    assert torch.equal(spec.sent(spec.distribution(params).mode()), params[:2].tanh())
