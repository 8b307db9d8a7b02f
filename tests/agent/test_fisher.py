"""Estimates of the Fisher matrix, against gradients of single rows, for every kind of action and layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.agent.fisher import MOST_IMAGES, estimate, factors, layers_of
from polyactor.config import Config
from polyactor.data import Rollout
from polyactor.envs import EnvSpec
from polyactor.errors import OutOfResources, UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim.kfac import Layer
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh
from tests.helpers.toys import Everything

MakeRollout = Callable[..., Rollout]
BOX, TWO = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
ACTIONS: dict[str, spaces.Space[Any]] = {
    "choice": spaces.Discrete(4),
    "choices": spaces.MultiDiscrete([3, 2]),
    "numbers": TWO,
    "both": spaces.Tuple((spaces.MultiDiscrete([3]), TWO)),
}


def made(space: Any = BOX, actions: Any = TWO, **spec: Any) -> tuple[ActorCritic, tuple[Layer, ...]]:
    torch.manual_seed(0)
    spec = {"hidden": (5,)} | spec
    model = ActorCritic(space, actions, ModelSpec(**spec))
    with torch.no_grad():
        for parameter in model.parameters():  # heads are nearly 0 at first
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, layers_of(model, EnvSpec(space, actions))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def names(layers: tuple[Layer, ...], *, factored: bool) -> set[str]:
    return {layer.name for layer in layers if layer.factored == factored}


@pytest.mark.parametrize("name", ACTIONS)
def test_of_a_batch_of_one_it_is_the_outer_product_of_the_gradient(name: str, make_rollout: MakeRollout) -> None:
    """Exactly, for each layer (T14 i)."""
    model, layers = made(actions=ACTIONS[name])
    rollout = make_rollout(1, 1, actions=TWO, dtype=torch.float32, end=0.0)
    found = estimate(model, layers, rollout, seeded())

    out, generator = model.unroll(rollout.acted), seeded()
    pi_t = model.distribution(out.policy)
    a_t, noise = pi_t.sample(generator), torch.empty(1, 1).normal_(generator=generator)
    log_p = pi_t.log_prob(a_t.detach()) - 0.5 * (out.value - (out.value + noise).detach()) ** 2
    gradients = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(log_p, [*model.parameters()]), strict=True)
    )
    for layer in layers:
        if layer.factored:
            own = gradients[f"{layer.name}.weight"], gradients[f"{layer.name}.bias"].unsqueeze(1)
            g = torch.cat(own, 1).T.flatten()  # vec(W) is column by column
            fisher = torch.kron(found[f"inputs.{layer.name}"], found[f"outputs.{layer.name}"])
            np.testing.assert_allclose(fisher, torch.outer(g, g), rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_allclose(found[f"diagonal.{layer.name}"], gradients[layer.name] ** 2, rtol=1e-4)
    free = name in ("numbers", "both")
    assert names(layers, factored=True) == {"trunk.torso.1", "policy.mean" if free else "policy", "value"}
    assert names(layers, factored=False) == ({"policy.log_std"} if free else set())


def test_fake_rows_count_for_nothing(make_rollout: MakeRollout) -> None:
    model, layers = made()
    rollout = make_rollout(8, 4, actions=TWO, dtype=torch.float32, end=0.4)
    assert 0 < rollout.steps < 32
    before = estimate(model, layers, rollout, seeded())
    seen = rollout.observation.clone()
    seen[:-1][rollout.is_first[1:]] = 99.0
    after = estimate(model, layers, rollout.replace(observation=seen), seeded())
    real = (~rollout.is_first[1:]).flatten()
    x = rollout.observation[:-1].flatten(0, 1)[real]
    ones = torch.cat([x, torch.ones(len(x), 1)], 1)
    np.testing.assert_allclose(before["inputs.trunk.torso.1"], ones.T @ ones / rollout.steps, rtol=1e-4, atol=1e-6)
    for name, factor in before.items():
        np.testing.assert_allclose(after[name], factor, rtol=1e-4, atol=1e-6)
    noise = torch.empty(8, 4, 2).normal_(generator=seeded())[~rollout.is_first[1:]]
    scores = (noise**2 - 1).sum(0)  # Σ ∂ log π/∂ log σ over real rows
    np.testing.assert_allclose(before["diagonal.policy.log_std"], scores**2 / rollout.steps, rtol=1e-4)


def test_without_a_real_row_there_is_no_estimate(make_rollout: MakeRollout) -> None:
    model, layers = made()
    rollout = make_rollout(1, 2, actions=TWO, dtype=torch.float32)
    rollout = rollout.replace(is_first=torch.ones(2, 2, dtype=torch.bool))
    assert estimate(model, layers, rollout, seeded()) == {}


def test_the_mean_of_many_is_the_fisher_matrix_of_a_gaussian(make_rollout: MakeRollout) -> None:
    """E[(∂ log π/∂ log σ)²] = 2, E[(∂ log π/∂μ)²] = σ⁻², and of the value's unit Gaussian 1."""
    model, layers = made(log_std_start=0.5)
    rollout, generator = make_rollout(40, 25, actions=TWO, dtype=torch.float32, end=0.0), seeded()
    found = [estimate(model, layers, rollout, generator) for _ in range(60)]
    mean = {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}
    variance = (2 * dict(model.named_parameters())["policy.log_std"].detach()).exp()
    assert mean["diagonal.policy.log_std"].tolist() == pytest.approx([2.0, 2.0], rel=0.5)  # 60 squares of normals
    assert float(mean["outputs.value"]) == pytest.approx(1.0, rel=0.03)
    np.testing.assert_allclose(mean["outputs.policy.mean"], (1 / variance).diag(), rtol=0.04, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), ((2, 1), (0, 2), 2)])
def test_a_convolution_is_a_dense_layer_at_every_place(bias: bool, stride: Any, padding: Any, dilation: Any) -> None:
    conv = nn.Conv2d(2, 3, 2, stride, padding, dilation, bias=bias).double()
    x = torch.randn(4, 2, 6, 5, generator=seeded(), dtype=torch.float64)
    y = conv(x)
    g = torch.randn(y.shape, generator=seeded(2), dtype=torch.float64)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    a, b = factors(conv, x, g, mask)
    weight = torch.randn(conv.weight.shape, generator=seeded(3), dtype=torch.float64)
    # ‖W ā‖² over places, by the convolution itself: tr(W A Wᵀ).
    conv.weight.data = weight
    squares = conv(x)[mask.flatten().bool()].square().sum() / 3
    row = weight.flatten(1) if conv.bias is None else torch.cat([weight.flatten(1), conv.bias.data.unsqueeze(1)], 1)
    np.testing.assert_allclose((row @ a @ row.T).trace(), squares.detach(), rtol=1e-9)
    real, places = g[mask.flatten().bool()], y.shape[2] * y.shape[3]
    np.testing.assert_allclose(b, torch.einsum("nohw,nphw->op", real, real) / (3 * places), rtol=1e-9)


def test_many_images_are_thinned_out_evenly() -> None:
    conv, rows = nn.Conv2d(1, 1, 1), 2 * MOST_IMAGES + 2
    x = torch.zeros(rows, 1, 1, 1)
    x[::3] = 1.0  # of each three rows one is taken
    a, _ = factors(conv, x, torch.zeros(rows, 1, 1, 1), torch.ones(rows, 1))
    assert a.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("alone", [True, False])
def test_of_many_rows_of_images_columns_are_taken_evenly(
    make_rollout: MakeRollout, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr("polyactor.agent.fisher.MOST_ROWS", 6)
    images = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    space = images if alone else spaces.Dict({"camera": images, "place": BOX})
    model, layers = made(space, ACTIONS["choice"], torso="a3c-cnn")
    pixels = torch.randint(256, (4, 4, *images.shape), dtype=torch.uint8, generator=seeded())
    both = {"camera": pixels, "place": torch.randn(4, 4, 3, generator=seeded())}
    rollout = make_rollout(3, 4, dtype=torch.float32).replace(observation=pixels if alone else both)
    found, half = (estimate(model, layers, each, seeded()) for each in (rollout, rollout.columns(slice(0, None, 2))))
    assert all(torch.equal(found[name], half[name]) for name in found)
    monkeypatch.undo()
    assert not torch.equal(estimate(model, layers, rollout, seeded())["inputs.value"], found["inputs.value"])


def test_a_dense_layer_may_have_several_places_of_a_row() -> None:
    dense = nn.Linear(3, 2)
    x, g = torch.randn(2, 3, 4, 3), torch.randn(2, 3, 4, 2)
    a, b = factors(dense, x, g, torch.ones(2, 3))
    as_conv = factors(nn.Conv2d(3, 2, 1), *(each.flatten(0, 1).mT.unsqueeze(-1) for each in (x, g)), torch.ones(2, 3))
    np.testing.assert_allclose(a, as_conv[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, as_conv[1], rtol=1e-5, atol=1e-6)


class WithInput(nn.Linear):
    """A layer that returns its input, too."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Odd(nn.Module):
    """A torso with layers of every kind."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.twice, self.once, self.norm = nn.Linear(3, 3), nn.Linear(3, 4), nn.LayerNorm(4)
        self.tied = nn.Linear(3, 4)
        self.other = nn.Linear(3, 4)
        self.other.weight = self.tied.weight
        self.own = WithInput(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.twice(self.twice(x)))[0]
        return self.norm(torch.relu_(self.once(x))) + self.tied(x) + self.other(x)


def test_layers_that_compute_all_rows_in_one_call_are_factored_and_all_else_is_diagonal(
    make_rollout: MakeRollout,
) -> None:
    model, layers = made(torso=Odd)
    assert names(layers, factored=True) == {"trunk.torso.once", "policy.mean", "value"}
    assert names(layers, factored=False) == {
        *(f"trunk.torso.{name}.{kind}" for name in ("twice", "norm", "tied", "own") for kind in ("weight", "bias")),
        "trunk.torso.other.bias",
        "policy.log_std",
    }
    found = estimate(model, layers, make_rollout(4, 3, actions=TWO, dtype=torch.float32), seeded())
    assert all(bool(factor.isfinite().all()) and bool(factor.any()) for factor in found.values())


def test_an_activation_in_place_changes_nothing(make_rollout: MakeRollout) -> None:
    class Apart(nn.Sequential):
        def __init__(self, space: Any, inplace: bool = False) -> None:
            super().__init__(nn.Linear(3, 5), nn.ReLU(inplace))

    class InPlace(Apart):
        def __init__(self, space: Any) -> None:
            super().__init__(space, inplace=True)

    rollout = make_rollout(4, 3, actions=TWO, dtype=torch.float32)
    one, other = (estimate(*made(torso=torso), rollout, seeded()) for torso in (Apart, InPlace))
    for name, factor in one.items():
        np.testing.assert_allclose(other[name], factor, rtol=1e-4, atol=1e-6)


def test_a_recurrent_core_is_diagonal(make_rollout: MakeRollout) -> None:
    model, layers = made(core="lstm", core_size=4)
    assert names(layers, factored=False) >= {
        f"trunk.core.cell.{name}" for name in ("weight_ih", "weight_hh", "bias_ih")
    }
    state = model.initial_state(3)
    found = estimate(model, layers, make_rollout(4, 3, actions=TWO, dtype=torch.float32, core_state=state), seeded())
    assert float(found["diagonal.trunk.core.cell.weight_hh"].min()) >= 0
    assert bool(found["diagonal.trunk.core.cell.weight_hh"].any())


def test_factors_beyond_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made(BOX, ACTIONS["choice"], hidden=(3_000,))
    monkeypatch.setattr("polyactor.agent.fisher.memory_mb", lambda: 100.0)
    with pytest.raises(OutOfResources, match=r"needs 0\.3 GB .* most of it for policy, 3,001 x 4, .* has 0\.1 GB"):
        made(BOX, ACTIONS["choice"], hidden=(3_000,))


def test_weights_that_are_computed_are_refused() -> None:
    for normal in (nn.utils.parametrizations.weight_norm, lambda layer: nn.utils.parametrizations.orthogonal(layer)):
        with pytest.raises(
            UsageError, match=r"kfac is not allowed with trunk.torso.0, a ParametrizedLinear that computes"
        ):
            made(torso=lambda space, normal=normal: nn.Sequential(normal(nn.Linear(3, 4))))


def test_what_was_remembered_while_acting_changes_nothing() -> None:
    config = base_config("acktr", env="polyactor/Catch-v0")
    parts = fresh(_small(config))
    replica, actor = parts.actor(0)
    rollout = actor.collect(0)
    layers = parts.state.statistics[0].layers  # type: ignore[attr-defined]
    assert rollout.memo is not None
    assert rollout.memo.outputs
    with_memo = estimate(replica.model, layers, rollout, seeded())
    without = estimate(replica.model, layers, rollout.replace(memo=None), seeded())
    assert any(len(layer.weight.shape) == 4 for layer in layers)
    for name, factor in without.items():
        np.testing.assert_allclose(with_memo[name], factor, rtol=1e-4, atol=1e-5)
    actor.close()


def _small(config: Config) -> Config:
    return replace(config, envs=2, rollout=3, steps=24)


def test_an_environment_with_everything_can_be_estimated() -> None:
    config = _small(base_config("acktr", env=Everything))
    parts = fresh(config)
    _, actor = parts.actor(0)
    learner = parts.learner(0, parts.replica())
    (gradients,) = learner.gradients(actor.collect(0))
    statistics = set(parts.state.statistics[0])
    assert set(gradients.factors) == {
        name for name in statistics if name.split(".")[0] in ("inputs", "outputs", "diagonal")
    }
    parts.updater(0).apply(gradients)
    assert parts.state.statistics[0]["estimates"] == 1
    actor.close()
