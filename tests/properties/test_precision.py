"""bf16 computes, float32 learns: nothing rounded reaches θ, and both gradients point the same way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.agent.learner import Learner
from polyactor.agent.replica import Replica
from polyactor.algorithms import A2C
from polyactor.data import Rollout
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.scaling import IMAGES_IN_CACHE
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD
from polyactor.optim.flat import State
from polyactor.shared.counters import SharedCounters

IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)
SPECS = [ModelSpec(), ModelSpec(core="lstm", core_size=32), ModelSpec(core="lstm", core_size=32, share_torso=False)]
T, B = 3, 5


def make(spec: ModelSpec, precision: Any) -> ActorCritic:
    torch.manual_seed(0)
    model = ActorCritic(IMAGE, spaces.Discrete(4), spec, precision=precision, normalize_observation=True)
    torch.nn.init.normal_(model.policy.weight, std=0.1)  # type: ignore[arg-type]
    return model


def learner(spec: ModelSpec, precision: Any) -> Learner:
    model = make(spec, precision)
    state, counters = State.of(model, SGD(), 1), SharedCounters(1)
    replica = Replica(make(spec, precision), state, counters)
    own = Learner(A2C(), replica, total_steps=100, clip_reward=None, generator=torch.Generator())
    replica.pull()
    return own


def rollout(model: ActorCritic) -> Rollout:
    rng = np.random.default_rng(0)
    return Rollout(
        observation=torch.from_numpy(rng.integers(0, 256, (T + 1, B, *IMAGE.shape), dtype=np.uint8)),
        is_first=torch.zeros(T + 1, B, dtype=torch.bool),
        action=torch.from_numpy(rng.integers(0, 4, (T, B))),
        reward=torch.from_numpy(rng.normal(size=(T, B)).astype(np.float32)),
        terminated=torch.zeros(T, B, dtype=torch.bool),
        behavior_log_prob=torch.zeros(T, B),
        core_state=model.initial_state(B),
        version=torch.zeros(B, dtype=torch.int64),
        moments={},
    )


def gradient(own: Learner) -> Tensor:
    (each,) = own.gradients(rollout(own.replica.model))
    return each.vector.clone()


@pytest.mark.parametrize("spec", SPECS)
def test_a_replica_computes_with_theta_rounded_and_keeps_theta_exact(spec: ModelSpec) -> None:
    replica = learner(spec, "bf16").replica
    replica.state.vector.add_(1e-4)
    replica.pull()
    assert torch.equal(replica.vector, replica.state.vector)
    exact = replica.state.views()
    lowered = {name: p for name, p in replica.model.named_parameters() if p.dtype == torch.bfloat16}
    torsos = {name for name, _ in replica.model.named_parameters() if ".torso." in name}
    assert set(lowered) == torsos
    for name, parameter in lowered.items():
        assert torch.equal(parameter, exact[name].bfloat16())
        assert exact[name].dtype == torch.float32


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_of_both_precisions_point_the_same_way(spec: ModelSpec) -> None:
    exact, rounded = learner(spec, "fp32"), learner(spec, "bf16")
    one, other = gradient(exact), gradient(rounded)
    assert torch.equal(exact.replica.vector, rounded.replica.vector)
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
    assert cosine > 0.998  # of noise, the hardest image there is
    assert cosine < 1
    layout = exact.replica.state.layout
    for slot in layout.slots:
        if slot.start < layout.theta:
            assert slot.view(one).any() == slot.view(other).any(), slot.name


def test_no_gradient_outlives_its_update() -> None:
    own = learner(SPECS[0], "bf16")
    assert torch.equal(gradient(own), gradient(own))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("count", [1, IMAGES_IN_CACHE, 2 * IMAGES_IN_CACHE + 3])
def test_images_are_scaled_alike_however_many_there_are(precision: Any, learning: bool, count: int) -> None:
    model = make(SPECS[0], precision)
    assert model.observation_moments is not None
    model.observation_moments.count.fill_(10)
    model.observation_moments.mean.uniform_(0, 255)
    model.observation_moments.variance.uniform_(0, 1000)
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *IMAGE.shape), dtype=np.uint8))
    with torch.set_grad_enabled(learning):
        ready = model.prepared(x)
    scale = (model.observation_moments.variance + model.scalings[""].variance_floor).sqrt()
    expected = ((x - model.observation_moments.mean) / scale).clamp(-5, 5)
    assert ready.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    torch.testing.assert_close(ready, expected.to(ready.dtype), rtol=1e-2 if precision == "bf16" else 1e-5, atol=1e-5)


def test_numbers_stay_float32() -> None:
    """Nothing is lowered where nothing computes in bf16."""
    space = spaces.Box(-1, 1, (3,), np.float32)
    model = ActorCritic(space, spaces.Discrete(2), replace(SPECS[0], hidden=(8,)))
    model.lower()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
