"""K-FAC's steps: the golden one, momentum, the cold start, running averages, and what does not depend on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyactor.equations import kronecker
from polyactor.errors import Diverged
from polyactor.optim.flat import Layout, bind
from polyactor.optim.kfac import KFAC, Factors, Layer

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
WARM = KFAC(cold_updates=0, momentum=0.0, inverse="eigen")


def layers(model: nn.Module) -> tuple[Layer, ...]:
    """Of a dense layer beside a parameter of its own."""
    slots = {slot.name: slot for slot in Layout.of(model).slots}
    return (
        Layer("dense", slots["dense.weight"], slots["dense.bias"]),
        *(Layer(name, slot, factored=False) for name, slot in slots.items() if not name.startswith("dense")),
    )


def one_layer(inputs: int, outputs: int, extra: int = 0) -> tuple[Tensor, tuple[Layer, ...]]:
    """θ of zeros and its layers."""
    model = nn.Module()
    model.dense = nn.Linear(inputs, outputs)
    if extra:
        model.free = nn.Parameter(torch.zeros(extra))
    model.double()
    theta = torch.zeros(Layout.of(model).theta, dtype=torch.float64)
    bind(model, theta)
    return theta.zero_(), layers(model)


def vector(theta: Tensor, layer: Layer, matrix: Any) -> Tensor:
    made = torch.zeros_like(theta)
    layer.put(torch.as_tensor(matrix, dtype=torch.float64), made)
    return made


def estimate(inputs: int, outputs: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, g = (torch.randn(20, size, generator=generator, dtype=torch.float64) for size in (inputs, outputs))
    moments = kronecker.homogeneous_moment(a) / 20, kronecker.second_moment(g) / 20
    return {"inputs.dense": moments[0], "outputs.dense": moments[1]}


def test_golden_update(golden: Golden) -> None:
    x, y = golden("kfac_linear_softmax")
    theta, (layer,) = one_layer(2, 3)
    rule = replace(WARM, lr=x["lr"], kl_clip=x["kl_clip"], damping=x["damping"])
    statistics = rule.statistics(theta, [layer])
    factors = {"inputs.dense": y["A"], "outputs.dense": y["G_sampled"]}
    rule.observe(statistics, {name: torch.tensor(factor, dtype=torch.float64) for name, factor in factors.items()})
    rule.step(theta, vector(theta, layer, y["grad_W"]), statistics, rule.lr)
    np.testing.assert_allclose(layer.of(theta), y["update_direction"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("inverse", ["eigen", "cholesky"])
def test_momentum_is_of_steps_within_the_trust_region(inverse: Any) -> None:
    theta, (layer,) = one_layer(2, 3)
    rule = replace(WARM, momentum=0.8, inverse=inverse)
    statistics, velocity, expected = rule.statistics(theta, [layer]), torch.zeros(3, 3), torch.zeros(3, 3)
    found = estimate(2, 3)
    rule.observe(statistics, found)
    a, g = found["inputs.dense"], found["outputs.dense"]
    for seed in range(4):
        v = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rule.step(theta, vector(theta, layer, v), statistics, 0.1)
        if inverse == "eigen":
            natural = kronecker.by_eigen(v, *kronecker.eigen(a, g, rule.damping))
        else:
            inverse_a, inverse_g = kronecker.damped_inverses(a, g, rule.damping)
            natural = inverse_g @ v @ inverse_a
        velocity = 0.8 * velocity + kronecker.kl_scale(v, natural, 0.1, rule.kl_clip) * natural
        expected = expected - 0.1 * (1 - 0.8) * velocity
        np.testing.assert_allclose(layer.of(theta), expected, rtol=0, atol=1e-12)


def test_a_cold_start_takes_plain_clipped_steps_and_estimates_each_time() -> None:
    theta, (layer,) = one_layer(2, 3)
    rule = KFAC(cold_updates=2, cold_grad_norm=0.5, momentum=0.0, factors_every=7)
    assert [update for update in range(20) if rule.estimates_at(update)] == [0, 1, 7, 14]
    statistics, gradient = rule.statistics(theta, [layer]), vector(theta, layer, torch.full((3, 3), 2.0))
    for _ in range(2):
        rule.observe(statistics, estimate(2, 3))
        rule.step(theta, gradient, statistics, 0.25)
    np.testing.assert_allclose(layer.of(theta), torch.full((3, 3), -2 * 0.25 * 0.5 / 3), rtol=1e-6)
    assert not statistics["inverted"]
    before = theta.clone()
    rule.step(theta, gradient, statistics, 0.25)
    assert statistics["inverted"] == 3
    assert float((theta - before).norm()) < 0.25 * 0.5  # within the trust region


@pytest.mark.parametrize("inverse", ["eigen", "cholesky"])
def test_a_step_that_is_not_finite_ends_the_run_before_it_is_taken(inverse: Any) -> None:
    theta, (layer,) = one_layer(2, 3)
    theta = theta.float()
    rule = replace(WARM, inverse=inverse, damping=1e-90)
    statistics = rule.statistics(theta, [layer])
    rule.observe(statistics, {name: torch.zeros(factor.shape) for name, factor in estimate(2, 3).items()})
    with pytest.raises(Diverged, match="raise --optimizer"):
        rule.step(theta, torch.ones_like(theta), statistics, 0.25)
    assert not theta.any()
    assert not statistics["velocity"].any()


def test_without_an_estimate_the_start_stays_cold() -> None:
    theta, (layer,) = one_layer(2, 3)
    statistics = WARM.statistics(theta, [layer])
    WARM.step(theta, vector(theta, layer, torch.eye(3)), statistics, 0.25)
    assert float(theta.norm()) == pytest.approx(0.25 * 0.5, rel=1e-5)


def test_factors_are_means_first_and_then_decay() -> None:
    theta, (layer,) = one_layer(2, 3)
    rule = replace(WARM, decay=0.75)
    statistics = rule.statistics(theta, [layer])
    estimates = [estimate(2, 3, seed) for seed in range(6)]
    for each in estimates[:4]:
        rule.observe(statistics, each)
    mean = torch.stack([each["inputs.dense"] for each in estimates[:4]]).mean(0)
    np.testing.assert_allclose(statistics["inputs.dense"], mean, atol=1e-12)
    rule.observe(statistics, estimates[4])
    np.testing.assert_allclose(statistics["inputs.dense"], 0.75 * mean + 0.25 * estimates[4]["inputs.dense"])


def test_inverses_are_kept_until_they_are_due() -> None:
    theta, (layer,) = one_layer(2, 3)
    rule = replace(WARM, inverse="cholesky", inverse_every=3)
    statistics, seen = rule.statistics(theta, [layer]), []
    for seed in range(7):
        rule.observe(statistics, estimate(2, 3, seed))
        rule.step(theta, vector(theta, layer, torch.eye(3)), statistics, 0.1)
        seen.append(float(statistics["inverse_inputs.dense"][0, 0]))
    assert [a == b for a, b in pairwise(seen)] == [True, True, False, True, True, False]


def test_other_parameters_have_a_diagonal() -> None:
    theta, (layer, free) = one_layer(2, 3, extra=2)
    rule = replace(WARM, kl_clip=1e9, damping=0.5)
    statistics = rule.statistics(theta, [layer, free])
    rule.observe(statistics, estimate(2, 3) | {"diagonal.free": torch.tensor([1.5, 3.5]).double()})
    rule.step(theta, vector(theta, free, [4.0, 8.0]), statistics, 1.0)
    assert free.of(theta).tolist() == [-2.0, -2.0]
    assert not layer.of(theta).any()


def test_a_change_of_the_inputs_changes_no_step_of_the_function() -> None:
    """Without damping, and with a G that has an inverse, x → Mx leaves the step of W x̄ as it is (T14)."""
    generator = torch.Generator().manual_seed(0)
    x, g, w = (torch.randn(30, size, generator=generator, dtype=torch.float64) for size in (4, 3, 3))
    m = torch.randn(4, 4, generator=generator, dtype=torch.float64) + 2 * torch.eye(4)
    steps = []
    for inputs in (x, x @ m.T):
        theta, (layer,) = one_layer(4, 3)
        rule = replace(WARM, damping=1e-14, lr=0.1)
        statistics = rule.statistics(theta, [layer])
        factors = kronecker.homogeneous_moment(inputs) / 30, kronecker.second_moment(g) / 30
        rule.observe(statistics, {"inputs.dense": factors[0], "outputs.dense": factors[1]})
        ones = torch.cat([inputs, torch.ones(30, 1).double()], 1)
        rule.step(theta, vector(theta, layer, w.T @ ones / 30), statistics, rule.lr)
        steps.append(ones @ layer.of(theta).T)
    assert float(steps[0].norm()) > 1e-3
    np.testing.assert_allclose(steps[1], steps[0], rtol=0, atol=1e-9)


def test_statistics_know_their_layers() -> None:
    theta, found = one_layer(4, 3, extra=2)
    statistics = KFAC().statistics(theta, found)
    assert isinstance(statistics, Factors)
    assert statistics.layers == found
    assert {name: tuple(tensor.shape) for name, tensor in statistics.items()} == {
        "step": (), "estimates": (), "inverted": (), "velocity": (len(theta),), "inputs.dense": (5, 5),
        "outputs.dense": (3, 3), "inverse_inputs.dense": (5, 5), "inverse_outputs.dense": (3, 3), "diagonal.free": (2,),
    }  # fmt: skip
