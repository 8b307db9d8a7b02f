"""Weight norm against torch's, layer norm by hand, and both in networks whose tensors are views or constants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn.utils import parametrizations

from polyactor.data import Outputs, Rollout
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.norms import WeightNormConv2d, WeightNormLinear, scaled
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD
from polyactor.optim.flat import State, bind
from tests.helpers.networks import Memory, Vector

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 24, 24), np.uint8)
T, B = 2, 3


def model_of(space: spaces.Box, spec: ModelSpec, **more: Any) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(space, spaces.Discrete(4), spec, **more)


def outputs(model: ActorCritic, space: spaces.Box) -> Outputs:
    """Of a rollout that is the same for every model."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.randint(256, (T + 1, B, *space.shape), generator=generator)
    rollout = Rollout(
        observation=seen.to(torch.uint8) if space is IMAGE else seen / 128 - 1,
        is_first=torch.zeros(T + 1, B, dtype=torch.bool),
        action=torch.zeros(T, B, dtype=torch.int64),
        reward=torch.zeros(T, B),
        terminated=torch.zeros(T, B, dtype=torch.bool),
        behavior_log_prob=torch.zeros(T, B),
        core_state=model.initial_state(B),
        version=torch.zeros(B, dtype=torch.int64),
    )
    return model.unroll(rollout)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weight_norm_and_its_gradient_are_torchs(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        plain: Any = nn.Linear(5, 4).double()
        ours: Any = WeightNormLinear(plain)
        x = torch.randn(7, 5).double()
    else:
        plain = nn.Conv2d(3, 4, 3, 2, 1).double()
        ours = WeightNormConv2d(plain)
        x = torch.randn(2, 3, 6, 6).double()
    assert torch.equal(ours.weight, plain.weight)
    torch.testing.assert_close(ours(x), plain(x))
    theirs = parametrizations.weight_norm(plain)
    v, g = theirs.parametrizations.weight.original1, theirs.parametrizations.weight.original0
    with torch.no_grad():
        for mine, other in ((ours.weight, v), (ours.gain, g.flatten())):
            other.copy_(mine.mul_(torch.rand(mine.shape) + 0.5))
    torch.testing.assert_close(ours(x), theirs(x))
    loss = [layer(x).sin().sum() for layer in (ours, theirs)]
    mine = torch.autograd.grad(loss[0], (ours.weight, ours.gain, ours.bias))
    others = torch.autograd.grad(loss[1], (v, g, theirs.bias))
    for ours_, theirs_ in zip(mine, others, strict=True):
        torch.testing.assert_close(ours_, theirs_.view(ours_.shape))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
def test_both_derivatives_of_weight_norm_are_right(shape: tuple[int, ...]) -> None:
    """ACER's trust region takes the second one."""
    torch.manual_seed(0)
    v = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.rand(shape[0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scaled, (v, g))
    assert torch.autograd.gradgradcheck(scaled, (v, g))


@pytest.mark.parametrize(
    "spec",
    [ModelSpec(torso="impala-cnn", core="lstm", core_size=8), ModelSpec(torso="a3c-cnn", head_width=8)],
    ids=lambda spec: spec.torso,
)
def test_weight_norm_changes_nothing_at_the_start(spec: ModelSpec) -> None:
    plain, normed = model_of(IMAGE, spec), model_of(IMAGE, replace(spec, norm="weight"))
    one, other = outputs(plain, IMAGE), outputs(normed, IMAGE)
    torch.testing.assert_close([one.policy, one.value], [other.policy, other.value])
    before, after = ({name: p.shape for name, p in model.named_parameters()} for model in (plain, normed))
    layers = [name for name in before if name.endswith(".weight")]
    assert after == before | {name.replace(".weight", ".gain"): before[name][:1] for name in layers}


@pytest.mark.parametrize("norm", ["weight", "layer"])
@pytest.mark.parametrize(("space", "torso"), [(VECTOR, "mlp"), (IMAGE, "impala-cnn")], ids=["mlp", "impala-cnn"])
def test_an_average_network_computes_with_its_own_tensors(space: spaces.Box, torso: Any, norm: Any) -> None:
    """They are views of the shared vector in the order of θ, and copied by name."""
    spec = ModelSpec(torso=torso, hidden=(8,), norm=norm, core="gru", core_size=8)
    model = model_of(space, spec, averaged=True)
    state = State.of(model, SGD(), 1)
    assert model.average is not None
    assert state.average is not None
    assert torch.equal(state.average, state.theta)
    first = outputs(model.average, space).policy
    torch.testing.assert_close(first, outputs(model, space).policy)
    with torch.no_grad():
        state.theta.mul_(1.5)
    other = model_of(space, spec, averaged=True)
    vector = torch.zeros_like(state.vector)
    bind(other, vector)
    vector.copy_(state.vector)
    assert other.average is not None
    assert torch.equal(outputs(other.average, space).policy, first)
    assert torch.equal(outputs(other, space).policy, outputs(model, space).policy)
    assert not torch.allclose(outputs(other, space).policy, first, rtol=1e-2)
    with torch.no_grad():
        state.average.copy_(state.theta)
    assert torch.equal(outputs(model.average, space).policy, outputs(model, space).policy)


def test_layer_norm_stands_before_the_activation_of_every_hidden_dense_layer() -> None:
    model = model_of(VECTOR, ModelSpec(hidden=(8, 6), norm="layer", head_width=5))
    kinds = [nn.Flatten, nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear, nn.LayerNorm, nn.Tanh]
    assert [type(layer) for layer in model.trunk.torso] == kinds
    assert [type(layer) for layer in model.policy_layer] == [nn.Linear, nn.LayerNorm, nn.ReLU]  # type: ignore[union-attr]
    x = torch.randn(4, 3)
    sums = model.trunk.torso[1](x)
    by_hand = (sums - sums.mean(1, keepdim=True)) / (sums.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model.trunk.torso[3](model.trunk.torso[2](sums)), by_hand.tanh())


def test_the_layer_that_joins_entries_is_normalised() -> None:
    space = spaces.Dict({"picture": IMAGE, "vector": VECTOR})
    seen = {"picture": torch.rand(4, *IMAGE.shape), "vector": torch.randn(4, 3)}
    for norm, parts in (("none", ()), ("layer", ("norm.weight", "norm.bias")), ("weight", ("join.gain",))):
        torso = ActorCritic(space, spaces.Discrete(2), ModelSpec(torso="a3c-cnn", norm=norm)).trunk.torso  # type: ignore[arg-type]
        own = {"join.weight", "join.bias", *parts}
        assert {name for name, _ in torso.named_parameters() if name.startswith(("join", "norm"))} == own
        if norm == "layer":
            sums: list[torch.Tensor] = []
            torso.norm.register_forward_hook(lambda _, x, y, sums=sums: sums.append(y.detach()))
            features = torso(seen)
            assert torch.equal(features, sums[0].relu())
            torch.testing.assert_close(sums[0].mean(1), torch.zeros(4), rtol=0, atol=1e-6)


def test_parts_of_ones_own_have_no_norm() -> None:
    model = model_of(VECTOR, ModelSpec(torso=Vector, core=Memory, norm="weight"))
    assert {name for name, _ in model.named_parameters() if name.endswith("gain")} == {"policy.gain", "value.gain"}


@pytest.mark.parametrize("spec", [{"torso": "nature-conv"}, {"torso": "mlp", "hidden": ()}])
def test_layer_norm_of_nothing_is_refused(spec: Any) -> None:
    with pytest.raises(UsageError, match=r"--model.norm layer is not allowed for this network, .*: use none or weight"):
        model_of(spaces.Box(0, 255, (3, 40, 40), np.uint8), ModelSpec(norm="layer", **spec))
