"""Noisy layers: golden numbers, their start, and that each row gets the noise of its own environment."""

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
from torch.nn.functional import linear

from polyactor.algorithms.a2c import A2C
from polyactor.data import Batch, Rollout
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.noisy import Factorised, Independent, Noise, NoisyLinear
from polyactor.models.spec import ModelSpec

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 20, 20), np.uint8)
MIXED = spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,), np.float32)])


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_layers_give_the_golden_numbers(golden: Golden) -> None:
    given, wanted = golden("noisy_linear")
    x = tensor([given["x"]])
    noises = {
        Factorised: Factorised.of_normal(tensor([given["eps_in"] + given["eps_out"]])),
        Independent: tensor([[*given["eps_w_indep"][0], *given["eps_w_indep"][1], *given["eps_b_indep"]]]),
    }
    for kind, name in ((Factorised, "y_factorised"), (Independent, "y_independent")):
        layer = kind(3, 2).double()
        with torch.no_grad():
            layer.weight.copy_(tensor(given["mu_w"]))
            layer.bias.copy_(tensor(given["mu_b"]))
            layer.weight_sigma.fill_(given["sigma"])
            layer.bias_sigma.fill_(given["sigma"])
        torch.testing.assert_close(layer(x)[0], tensor(wanted["y_mean"]), rtol=0, atol=1e-9)
        Noise([layer]).put(noises[kind])
        torch.testing.assert_close(layer(x)[0], tensor(wanted[name]), rtol=0, atol=1e-9)
    f_in, f_out = noises[Factorised][0].split((3, 2))
    torch.testing.assert_close(torch.outer(f_out, f_in), tensor(wanted["factorised_eps_w"]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "bound", "sigma"), [(Factorised, 1 / 20, 0.5 / 20), (Independent, math.sqrt(3) / 20, 0.017)]
)
def test_layers_start_as_published(kind: Any, bound: float, sigma: float) -> None:
    layer = kind(400, 50)
    for mean in (layer.weight, layer.bias):
        assert mean.abs().max() <= bound
        assert mean.abs().max() > 0.9 * bound
    assert abs(layer.weight.mean()) < 0.02 * bound
    for each in (layer.weight_sigma, layer.bias_sigma):
        assert torch.equal(each, torch.full_like(each, sigma))


@pytest.mark.parametrize("shape", [(4, 5), (12, 5), (3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_each_environment_has_the_weights_of_its_own_noise(shape: tuple[int, ...]) -> None:
    """Whether rows are ``[B]``, ``[T·B]``, ``[T, B]`` or samples of these."""
    b, layer = 4, Factorised(5, 2).double()
    noise = torch.randn(b, 7, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    Noise([layer]).put(noise)
    y, rows = layer(x).reshape(-1, b, 2), x.reshape(-1, b, 5)
    for i in range(b):
        f_in, f_out = noise[i].split((5, 2))
        weight = layer.weight + layer.weight_sigma * torch.outer(f_out, f_in)
        torch.testing.assert_close(y[:, i], linear(rows[:, i], weight, layer.bias + layer.bias_sigma * f_out))


def model_of(spec: ModelSpec, actions: Any, observations: Any = VECTOR, **options: Any) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(observations, actions, spec, **options)


def acted(model: ActorCritic, observations: spaces.Box = VECTOR, t: int = 4, b: int = 3) -> tuple[Rollout, Tensor]:
    """A rollout that the model acted in with noise, and the parameters of the policy ``[T, B, P]`` that acted."""
    assert model.noise is not None
    rng = np.random.default_rng(0)
    if observations is IMAGE:
        x = torch.from_numpy(rng.integers(0, 256, (t + 1, b, *IMAGE.shape), dtype=np.uint8))
    else:
        x = torch.from_numpy(rng.normal(size=(t + 1, b, 3)).astype(np.float32))
    is_first = torch.from_numpy(rng.random((t + 1, b)) < 0.3)
    row = torch.zeros({"noise": b, "actor_noise": 1}[model.noise.field], model.noise.width)
    rollout = Rollout(
        observation=x,
        is_first=is_first,
        action=torch.zeros((t, b, *model.actions.shape), dtype=torch.float32 if model.actions.dims else torch.int64),
        reward=torch.randn(t, b),
        terminated=torch.zeros(t, b, dtype=torch.bool),
        behavior_log_prob=torch.zeros(t, b),
        core_state=tuple(torch.randn_like(part) for part in model.initial_state(b)),
        version=torch.zeros(b, dtype=torch.int64),
        memo=model.blank_memo(t * b, differentiated=True),
        **{model.noise.field: row},
    )
    noise = model.noise.draw(rollout, torch.Generator().manual_seed(0))
    if rollout.memo is not None:
        rollout = rollout.replace(memo=replace(rollout.memo, noise=noise))
    with torch.inference_mode():
        state, params = rollout.core_state, []
        for i in range(t):
            memo = rollout.memo and rollout.memo[i * b : (i + 1) * b]
            params_t, state = model.step(x[i], state, is_first[i], memo, noise=noise)
            params.append(params_t)
    return rollout, torch.stack(params)


@pytest.mark.parametrize("actions", [spaces.Discrete(4), MIXED], ids=["discrete", "mixed"])
@pytest.mark.parametrize("core", ["none", "lstm", "gru"])
@pytest.mark.parametrize("kind", ["factorised", "independent"])
@pytest.mark.parametrize("noisy", ["heads", "dense"])
def test_a_rollout_is_computed_with_the_noise_that_acted(noisy: Any, kind: Any, core: Any, actions: Any) -> None:
    spec = ModelSpec(hidden=(8,), core=core, core_size=6, noisy=noisy, noisy_kind=kind, share_torso=False, head_width=5)
    model = model_of(spec, actions, value_head="q" if actions is MIXED else "value")
    rollout, params = acted(model)
    out = model.unroll(rollout)
    torch.testing.assert_close(out.policy[:-1], params, rtol=0, atol=1e-6)
    nothing: Any = {"noise": None, "actor_noise": None}
    plain = model.unroll(rollout.replace(**nothing))
    means = model(rollout.observation, rollout.core_state, rollout.is_first)
    for with_noise, without, mean in ((out.policy, plain.policy, means[0]), (out.value, plain.value, means[1])):
        assert torch.equal(without, mean)
        assert (with_noise - without).abs().amax(tuple(range(2, without.dim()))).min() > 1e-5  # row T, too
    if actions is MIXED:  # A(x, a) is computed when others have computed since
        assert out.advantage is not None
        assert plain.advantage is not None
        one, other = out.advantage(rollout.action), plain.advantage(rollout.action)
        assert (one - other).abs().min() > 1e-6
        assert torch.equal(one, out.advantage(rollout.action))
    if kind == "factorised":  # rows of other environments, in another order
        cut = rollout.columns(torch.tensor([2, 0]))
        torch.testing.assert_close(model.unroll(cut).policy[:-1], params[:, [2, 0]], rtol=0, atol=1e-6)
    if core == "none":
        index = torch.tensor([7, 2, 10, 0])
        torch.testing.assert_close(
            model.unroll(rollout.rows(index)).policy[0], params.flatten(0, 1)[index], rtol=0, atol=1e-6
        )


def test_what_is_noisy_is_what_was_asked_for() -> None:
    def noisy(spec: ModelSpec, observations: Any = VECTOR, **options: Any) -> set[str]:
        model = model_of(spec, MIXED, observations, **options)
        return {name for name, each in model.named_modules() if isinstance(each, NoisyLinear)}

    heads = {"policy.mean", "value", "dueling.hidden", "dueling.out"}
    spec = ModelSpec(hidden=(8, 8), core="lstm", core_size=4)
    assert noisy(spec, value_head="q") == set()
    assert noisy(replace(spec, noisy="heads"), value_head="q") == heads
    assert noisy(replace(spec, noisy="heads", head_width=4)) == {
        *("policy_layer.0", "value_layer.0", "policy.mean", "value")
    }
    assert noisy(replace(spec, noisy="dense"), value_head="q") == heads | {"trunk.torso.1", "trunk.torso.3"}
    assert noisy(replace(spec, noisy="dense", torso="a3c-cnn"), IMAGE) == {"policy.mean", "value", "trunk.torso.5"}
    several = spaces.Dict({"camera": IMAGE, "place": VECTOR})
    joined = {"trunk.torso.cnns.0.5", "trunk.torso.mlp.1", "trunk.torso.mlp.3", "trunk.torso.join"}
    assert noisy(replace(spec, noisy="dense"), several) == {"policy.mean", "value"} | joined


def gradients(model: ActorCritic, rollout: Rollout) -> list[Tensor]:
    loss, _ = A2C().loss(model, Batch(rollout))
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("noisy", ["heads", "dense"])
def test_remembered_outputs_are_those_of_the_same_noise(noisy: Any) -> None:
    spec = ModelSpec(torso="a3c-cnn", noisy=noisy)
    model = model_of(spec, spaces.Discrete(3), IMAGE)
    rollout, _ = acted(model, IMAGE)
    assert rollout.memo is not None
    assert rollout.noise is not None
    for ours, theirs in zip(gradients(model, rollout), gradients(model, rollout.replace(memo=None)), strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for part in rollout.memo.features:
            part.add_(1.0)  # whoever uses them is seen
        used, unused = (model.unroll(each).policy for each in (rollout, rollout.replace(memo=None)))
        assert not torch.allclose(used, unused, atol=1e-2)
        other = rollout.replace(noise=torch.randn_like(rollout.noise))
        ours, theirs = model.unroll(other), model.unroll(other.replace(memo=None))
        torch.testing.assert_close(ours.policy, theirs.policy, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.value, theirs.value, rtol=0, atol=1e-6)


def test_the_average_network_computes_with_the_same_noise() -> None:
    model = model_of(ModelSpec(hidden=(8,), noisy="dense"), spaces.Discrete(3), averaged=True)
    rollout, params = acted(model)
    assert model.average is not None
    ours, average = model.unroll(rollout), model.average.unroll(rollout.acted)
    torch.testing.assert_close(average.policy, params, rtol=0, atol=1e-6)
    torch.testing.assert_close(average.policy, ours.policy[:-1], rtol=0, atol=1e-6)


def test_the_mean_of_sigma_counts_every_weight_once() -> None:
    layers: list[NoisyLinear] = [Factorised(3, 1), Factorised(1, 1)]
    with torch.no_grad():
        for layer in layers:
            layer.weight_sigma.fill_(-1.0)
            layer.bias_sigma.fill_(3.0)
    assert Noise(layers).mean_sigma() == (4 * 1.0 + 2 * 3.0) / 6
