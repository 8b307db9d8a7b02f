"""The Kronecker factors of a Fisher matrix, damping and natural gradients, against golden vectors and plain solves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyactor.equations import kronecker

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
CLOSE = {"rtol": 0, "atol": 1e-9}


def double(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def of_case(golden: Golden) -> tuple[Tensor, Tensor, Tensor, dict[str, Any], dict[str, Any]]:
    """A, G by the sampled labels, ∇W, and the case."""
    x, y = golden("kfac_linear_softmax")
    g = torch.nn.functional.one_hot(torch.tensor(x["sampled_labels"]), 3) - double(y["probs"])
    a = kronecker.homogeneous_moment(double(x["X"])) / len(g)
    return a, kronecker.second_moment(g) / len(g), double(y["grad_W"]), x, y


def positive(size: int, seed: int) -> Tensor:
    rows = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return kronecker.second_moment(rows) / len(rows)


def test_golden_factors(golden: Golden) -> None:
    a, g, _, _, y = of_case(golden)
    np.testing.assert_allclose(a, y["A"], **CLOSE)
    np.testing.assert_allclose(g, y["G_sampled"], **CLOSE)


def test_golden_natural_gradients(golden: Golden) -> None:
    a, g, gradient, x, y = of_case(golden)
    np.testing.assert_allclose(kronecker.pi(a, g), y["pi"], **CLOSE)
    inverse_a, inverse_g = kronecker.damped_inverses(a, g, x["damping"])
    np.testing.assert_allclose(inverse_g @ gradient @ inverse_a, y["natgrad_factored"], **CLOSE)
    natural = kronecker.by_eigen(gradient, *kronecker.eigen(a, g, x["damping"]))
    np.testing.assert_allclose(natural, y["natgrad_unfactored"], **CLOSE)
    np.testing.assert_allclose((gradient * natural).sum() * x["lr"] ** 2, y["vFv"], **CLOSE)
    np.testing.assert_allclose(kronecker.kl_scale(gradient, natural, x["lr"], x["kl_clip"]), y["nu"], **CLOSE)


@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_eigenvalues_solve_the_whole_system(damping: float) -> None:
    a, g, v = positive(5, 1), positive(3, 2), positive(5, 3)[:3]
    f = torch.kron(a, g) + damping * torch.eye(15, dtype=torch.float64)
    whole = torch.linalg.solve(f, v.T.flatten()).unflatten(0, (5, 3)).T  # vec(V) is column by column
    np.testing.assert_allclose(kronecker.by_eigen(v, *kronecker.eigen(a, g, damping)), whole, **CLOSE)


def test_damping_is_that_of_both_factors() -> None:
    a, g, v = positive(5, 1), 9 * positive(3, 2), positive(5, 3)[:3]
    inverse_a, inverse_g = kronecker.damped_inverses(a, g, 0.04)
    weight = float(((a.trace() / 5) / (g.trace() / 3)).sqrt())
    whole = torch.linalg.inv(g + 0.2 / weight * double(np.eye(3))) @ v
    whole = whole @ torch.linalg.inv(a + 0.2 * weight * double(np.eye(5)))
    np.testing.assert_allclose(inverse_g @ v @ inverse_a, whole, **CLOSE)
    # A scale that moves from one factor to the other, as that of a convolution's places may, changes nothing.
    moved_a, moved_g = kronecker.damped_inverses(100 * a, g / 100, 0.04)
    np.testing.assert_allclose(moved_g @ v @ moved_a, whole, **CLOSE)


def test_without_any_gradient_there_is_an_inverse() -> None:
    for part in kronecker.damped_inverses(positive(4, 1), torch.zeros(2, 2, dtype=torch.float64), 0.01):
        assert bool(part.isfinite().all())


def test_an_eigenvalue_that_rounding_made_negative_counts_as_zero() -> None:
    a = double([[1.0, 1 + 1e-6], [1 + 1e-6, 1.0]])  # of two inputs that are all but the same: 2 and −1e-6
    inverse, _ = kronecker.damped_inverses(a, double(np.eye(2)), 1e-14)
    np.testing.assert_allclose(inverse @ double([1.0, 1.0]), [0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(inverse @ double([1.0, -1.0]), [1e7, -1e7], rtol=1e-5)


def test_the_trust_region_holds_for_gradients_whose_squares_exceed_float32() -> None:
    gradient = torch.tensor([6e30, -4e30])
    natural = torch.tensor([2e30, 1e30])
    ν = float(kronecker.kl_scale(gradient, natural, 0.25, 1e-3))
    assert (6e30 * 2e30 - 4e30 * 1e30) * (0.25 * ν) ** 2 == pytest.approx(1e-3)


def test_a_step_within_the_trust_region_is_whole_and_a_longer_one_ends_at_its_edge() -> None:
    gradient, natural, lr, kl_clip = double([3.0, -1.0]), double([0.3, -0.2]), 0.25, 1e-3
    assert float(kronecker.kl_scale(gradient * 0.01, natural * 0.01, lr, kl_clip)) == 1.0
    ν = float(kronecker.kl_scale(gradient, natural, lr, kl_clip))
    assert ν < 1
    assert float((gradient * natural).sum()) * (lr * ν) ** 2 == pytest.approx(kl_clip)
    assert float(kronecker.kl_scale(0 * gradient, natural, lr, kl_clip)) == 1.0
    assert float(kronecker.kl_scale(gradient, natural, 0.0, kl_clip)) == 1.0


def test_a_one_is_appended() -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    ones = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
    np.testing.assert_allclose(kronecker.homogeneous_moment(x), ones.T @ ones, **CLOSE)
