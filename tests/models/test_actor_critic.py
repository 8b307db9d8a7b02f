"""The model: acting and learning see the same numbers, and every kind of space gets the right shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.agent.actor import Actor
from polyactor.data import Rollout
from polyactor.envs import make_envs
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.running_stats import merge, moments
from polyactor.models.scaling import CLIP_OBSERVATION
from polyactor.models.spec import ModelSpec

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SMALL = ModelSpec(hidden=(8,), core_size=6)


def make(
    observations: spaces.Box = VECTOR, actions: Any = None, spec: ModelSpec = SMALL, **options: Any
) -> ActorCritic:
    torch.manual_seed(0)
    model = ActorCritic(observations, spaces.Discrete(4) if actions is None else actions, spec, **options)
    with torch.no_grad():  # the policy starts near zero, where differences would not show
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_batch(space: spaces.Box, t: int, b: int) -> tuple[Tensor, Tensor]:
    """Observations ``[T, B, *O]`` and a few episode starts."""
    rng = np.random.default_rng(0)
    if space.dtype == np.uint8:
        x = rng.integers(0, 256, (t, b, *space.shape), dtype=np.uint8)
    else:
        x = rng.normal(size=(t, b, *space.shape)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.random((t, b)) < 0.3)


IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("space", "spec", "t"),
    [
        (VECTOR, SMALL, 7),
        (VECTOR, replace(SMALL, core="lstm"), 7),
        (VECTOR, replace(SMALL, share_torso=False), 7),
        (VECTOR, replace(SMALL, share_torso=False, core="lstm"), 7),
        (IMAGE, SMALL, 3),
        (IMAGE, replace(SMALL, core="lstm", torso="nature-cnn"), 3),
        (IMAGE, replace(SMALL, torso="a3c-conv", head_width=8), 3),
        (VECTOR, replace(SMALL, share_torso=False, core="lstm", head_width=8), 7),
    ],
    ids=["mlp", "lstm", "separate", "separate-lstm", "cnn", "cnn-lstm", "dual-head", "separate-lstm-heads"],
)
def test_unroll_over_t_rows_equals_t_single_steps(space: spaces.Box, spec: ModelSpec, t: int, normalized: bool) -> None:
    b, atol = 2, 1e-5 if space is IMAGE else 1e-6  # a CNN sums thousands of products, in another order
    model = make(space, spec=spec, normalize_observation=normalized)
    if normalized:
        mean, variance = (128.0, 5000.0) if space.dtype == np.uint8 else (0.3, 2.0)
        for name, number in {"count": 10.0, "mean": mean, "variance": variance}.items():
            getattr(model.observation_moments, name).fill_(number)
    x, is_first = random_batch(space, t, b)
    start = tuple(torch.randn_like(part) for part in model.initial_state(b))
    with torch.no_grad():
        unrolled = model.unroll(_rollout(x, is_first, start))
        state = start
        for row in range(t):
            before = state
            params, state = model.step(x[row], before, is_first[row])
            _, value, _ = model(x[row : row + 1], before, is_first[row : row + 1])
            torch.testing.assert_close(params, unrolled.policy[row], rtol=0, atol=atol)
            torch.testing.assert_close(value[0], unrolled.value[row], rtol=0, atol=atol)
        # One environment alone gets what it gets in the batch.
        alone, _ = model.step(x[0, :1], tuple(part[:1] for part in start), is_first[0, :1])
        torch.testing.assert_close(alone, unrolled.policy[0, :1], rtol=0, atol=atol)
    assert unrolled.policy.shape == (t, b, 4)
    assert unrolled.value.shape == (t, b)
    assert len(state) == {"none": 0, "lstm": 2}[spec.core] * (1 if spec.share_torso else 2)
    assert unrolled.policy.std() > 1e-3


def _rollout(x: Tensor, is_first: Tensor, core_state: tuple[Tensor, ...]) -> Rollout:
    none = torch.zeros(len(x) - 1, x.shape[1])
    return Rollout(x, is_first, none.long(), none, none.bool(), none, core_state, torch.zeros(x.shape[1]), 0)


@pytest.mark.parametrize("share_torso", [True, False])
def test_bptt_reaches_early_observations_of_the_episode_and_none_before_it(share_torso: bool) -> None:
    model = make(spec=replace(SMALL, core="lstm", share_torso=share_torso)).double()
    x = torch.randn(8, 2, 3, dtype=torch.float64, requires_grad=True)
    is_first = torch.zeros(8, 2, dtype=torch.bool)
    is_first[5, 1] = True
    out = model.unroll(_rollout(x, is_first, model.initial_state(2)))
    for late in (out.policy[-1], out.value[-1]):
        (gradient,) = torch.autograd.grad(late.square().sum(), x, retain_graph=True)
        reached = gradient.abs().sum(-1) > 0
        # The torso is not differentiated at the row to bootstrap from.
        assert reached[:, 0].tolist() == [row < 7 for row in range(8)]
        assert reached[:, 1].tolist() == [5 <= row < 7 for row in range(8)]
    # Early outputs do not see late inputs.
    (gradient,) = torch.autograd.grad(out.value[2].sum(), x)
    assert (gradient[3:] == 0).all()


def test_separate_torsos_share_nothing() -> None:
    model = make(spec=replace(SMALL, share_torso=False, core="lstm"))
    x, is_first = random_batch(VECTOR, 4, 2)
    out = model.unroll(_rollout(x, is_first, model.initial_state(2)))
    out.value.sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert touched
    assert all(name.startswith(("critic.", "value.")) for name in touched)


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_heads_of_their_own_share_what_is_below_them_and_nothing_else(core: Any) -> None:
    model = make(IMAGE, spec=replace(SMALL, torso="nature-conv", head_width=512, core=core), precision="bf16")
    features = 3136 if core == "none" else SMALL.core_size
    assert [tuple(layer[0].weight.shape) for layer in (model.policy_layer, model.value_layer)] == [(512, features)] * 2
    x, is_first = random_batch(IMAGE, 2, 2)
    out = model.unroll(_rollout(x, is_first, model.initial_state(2)))
    assert out.policy.dtype == out.value.dtype == torch.float32
    named = dict(model.named_parameters())
    for loss, own in ((out.policy.square().sum(), "policy"), (out.value.sum(), "value")):
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        touched = {name.split(".")[0] for name, g in zip(named, gradients, strict=True) if g is not None and g.any()}
        assert touched == {"trunk", own, f"{own}_layer"}


@pytest.mark.parametrize(
    ("torso", "size", "frames", "features"),
    [
        ("a3c-cnn", 84, 4, 256),
        ("a3c-conv", 84, 4, 2592),
        ("nature-cnn", 84, 4, 512),
        ("nature-cnn-32", 84, 4, 512),
        ("nature-conv", 84, 4, 3136),
        ("impala-cnn", 84, 4, 256),
        ("elu-conv", 42, 1, 288),
        ("pool-conv", 80, 1, 1024),
    ],
)
def test_convolutional_torsos_have_their_sources_widths(torso: Any, size: int, frames: int, features: int) -> None:
    space = spaces.Box(0, 255, (frames, size, size), np.uint8)
    model = make(space, spec=replace(SMALL, torso=torso))
    assert model.trunk.features == features
    x, is_first = random_batch(space, 1, 2)
    assert model.unroll(_rollout(x, is_first, ())).policy.shape == (1, 2, 4)
    kinds = {type(layer).__name__ for layer in model.trunk.torso} - {"Conv2d", "Pixels", "Linear"}
    pooled = {"ReLU", "MaxPool2d"}
    others = {"elu-conv": {"ELU"}, "pool-conv": pooled, "impala-cnn": pooled | {"Residual"}}
    assert kinds == others.get(torso, {"ReLU"})


@pytest.mark.parametrize(
    ("actions", "params", "shape"),
    [
        (spaces.Discrete(4), 4, ()),
        (spaces.MultiDiscrete([2, 3]), 5, (2,)),
        (spaces.Box(-1, 1, (3,), np.float32), 6, (3,)),
        (spaces.Box(-1, 1, (1,), np.float32), 2, (1,)),
    ],
    ids=["discrete", "multi-discrete", "box", "box-of-one"],
)
@pytest.mark.parametrize("log_std", ["free", "state"])
def test_action_shapes(actions: Any, params: int, shape: tuple[int, ...], log_std: Any) -> None:
    model = make(actions=actions, spec=replace(SMALL, log_std=log_std))
    x, is_first = random_batch(VECTOR, 5, 2)
    out = model.unroll(_rollout(x, is_first, ()))
    assert out.policy.shape == (5, 2, params)
    pi = model.distribution(out.policy)
    action = pi.sample(torch.Generator().manual_seed(0)).detach()
    assert action.shape == (5, 2, *shape)
    assert pi.log_prob(action).shape == pi.entropy().shape == (5, 2)
    inside = action.clamp(-1, 1) if model.actions.dims else action
    assert all(actions.contains(each.numpy()) for each in inside.flatten(0, 1))


def test_free_log_std_ignores_the_observation_and_the_other_follows_it() -> None:
    box = spaces.Box(-1, 1, (2,), np.float32)
    x, is_first = random_batch(VECTOR, 5, 2)
    for log_std, varies in (("free", False), ("state", True)):
        spec = replace(SMALL, log_std=log_std, log_std_start=-0.7)
        fresh = ActorCritic(VECTOR, box, spec)
        start = fresh.unroll(_rollout(torch.zeros_like(x), is_first, ())).policy[..., 2:]
        torch.testing.assert_close(start, torch.full_like(start, -0.7))
        rows = make(actions=box, spec=spec).unroll(_rollout(x, is_first, ())).policy[..., 2:].flatten(0, 1)
        assert bool((rows.std(0) > 1e-4).all()) == varies


def test_images_of_either_channel_order_are_one_image() -> None:
    t, b = 2, 3
    hwc = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    x, is_first = random_batch(hwc, t, b)
    chw_model, hwc_model = make(IMAGE), make(hwc)
    with torch.no_grad():
        one = hwc_model.unroll(_rollout(x, is_first, ()))
        other = chw_model.unroll(_rollout(x.permute(0, 1, 4, 2, 3).contiguous(), is_first, ()))
    torch.testing.assert_close(one.policy, other.policy, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.value, other.value, rtol=0, atol=1e-6)
    assert one.policy.shape == (t, b, 4)


def test_bytes_are_scaled_to_the_unit_interval_once() -> None:
    model = make(IMAGE)
    prepared = model.prepared(torch.full((1, *IMAGE.shape), 255, dtype=torch.uint8))
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared, torch.ones_like(prepared))


def test_observations_are_normalised_by_the_running_moments_and_clipped() -> None:
    model = make(normalize_observation=True)
    x = torch.tensor([[1.0, -2.0, 1e6], [3.0, 4.0, -1e6], [0.0, 1.0, 0.0]])
    assert torch.equal(model.prepared(x), x)  # nothing is known yet
    seen = torch.randn(500, 3) * torch.tensor([2.0, 0.5, 3.0]) + torch.tensor([1.0, 0.0, -5.0])
    merge(dict(model.named_buffers()), "observation_moments", moments(seen))
    expected = ((x - seen.mean(0)) / seen.std(0, correction=0)).clamp(-5, 5)
    kept = x.clone()
    torch.testing.assert_close(model.prepared(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)
    assert model.prepared(x).abs().max() == CLIP_OBSERVATION == 5.0
    torch.testing.assert_close(model.prepared(seen).mean(0), torch.zeros(3), rtol=0, atol=1e-2)


def test_a_constant_input_stays_finite_and_small() -> None:
    model = make(normalize_observation=True)
    merge(dict(model.named_buffers()), "observation_moments", moments(torch.full((100, 3), 7.0)))
    assert model.prepared(torch.full((1, 3), 7.0)).abs().max() == 0
    pixels = make(IMAGE, normalize_observation=True)
    merge(
        dict(pixels.named_buffers()),
        "observation_moments",
        moments(torch.full((4, *IMAGE.shape), 9, dtype=torch.uint8)),
    )
    one_level_off = pixels.prepared(torch.full((1, *IMAGE.shape), 10, dtype=torch.uint8))
    assert 0 < one_level_off.max() < 1


@pytest.mark.parametrize("env", ["polyactor/TMaze-v0", "polyactor/Chain-v0", "polyactor/Bandit-v0"])
@pytest.mark.parametrize("core", ["none", "lstm"])
def test_log_probs_stored_while_acting_are_those_learned_from(env: str, core: Any) -> None:
    """ρ = π/μ is 1 on fresh data, across rollouts, resets and remembered states."""
    envs = make_envs(env, 3, max_episode_steps=9)
    model = make(envs.observation_space, envs.action_space, replace(SMALL, core=core))
    on_game: Callable[[float, int], None] = lambda score, length: None  # noqa: E731
    actor = Actor(
        envs, model, length=7, seed=0, generator=torch.Generator().manual_seed(0), gamma=0.99, on_game=on_game
    )
    resets, last = 0, None
    for _ in range(4):
        x = actor.collect(0)
        if last is not None:  # a rollout goes on where the one before stopped
            assert torch.equal(x.observation[0], last[0])
            assert torch.equal(x.is_first[0], last[1])
        last = x.observation[-1].clone(), x.is_first[-1].clone()
        with torch.no_grad():
            again = model.distribution(model.unroll(x).policy[:-1]).log_prob(x.action)
        torch.testing.assert_close(x.behavior_log_prob, again, rtol=0, atol=1e-6)
        assert x.steps == int(x.mask.sum())
        resets += int(x.is_first[1:].sum())
    assert resets > 0
    envs.close()


def test_only_convolutions_are_computed_in_bf16() -> None:
    pixels = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert make(pixels, precision="bf16").trunks[0].bf16
    assert not make(spaces.Box(0, 255, (128,), np.uint8), precision="bf16").trunks[0].bf16
