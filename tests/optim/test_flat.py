"""The flat vector: alignment, shared memory, and models that are views of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD, Adam, RMSprop, Rule
from polyactor.optim.flat import ALIGNMENT, Layout, State, bind, parameter_views


def make_model(seed: int = 0, **spec: Any) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Box(-1, 1, (2,), np.float32),
        ModelSpec(**{"hidden": (5, 7), "core": "lstm", "core_size": 3} | spec),
        normalize_observation=True,
        normalize_return=True,
    )


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tensor_starts_on_its_own_cache_line_and_none_overlap(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    state = State.of(model, SGD(), 1)
    layout, size = state.layout, torch.empty(0, dtype=dtype).element_size()
    ends = 0
    for slot in layout.slots:
        assert slot.start * size % ALIGNMENT == 0
        assert slot.start >= ends
        ends = slot.start + math.prod(slot.shape)
        assert tensors(model)[slot.name].data_ptr() % 64 == 0
        assert tensors(model)[slot.name].data_ptr() == state.vector.data_ptr() + slot.start * size
    assert ALIGNMENT == 64
    assert ends <= layout.size == len(state.vector)


def test_parameters_come_first_then_buffers_and_all_of_both() -> None:
    model = make_model()
    layout = Layout.of(model)
    names = [slot.name for slot in layout.slots]
    assert names == [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    assert {"observation_moments.mean", "return_moments.count"} <= set(names)
    buffers = {name for name, _ in model.named_buffers()}
    assert all((slot.start >= layout.theta) == (slot.name in buffers) for slot in layout.slots)


def test_bind_keeps_values_and_makes_everything_a_view() -> None:
    model = make_model()
    model.observation_moments.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    before = {name: tensor.detach().clone() for name, tensor in tensors(model).items()}
    layout = Layout.of(model)
    vector = torch.full((layout.size,), 7.0)
    assert bind(model, vector) == layout
    for name, tensor in tensors(model).items():
        assert torch.equal(tensor, before[name])
    vector.fill_(0.5)
    assert all((tensor == 0.5).all() for tensor in tensors(model).values())
    for slot in layout.slots:  # and back
        with torch.no_grad():
            tensors(model)[slot.name].fill_(0.25)
        assert (slot.view(vector) == 0.25).all()


def test_parameter_views_are_the_places_of_the_parameters_in_their_order() -> None:
    model = make_model()
    layout = Layout.of(model)
    gradient = torch.zeros(layout.theta)
    places = parameter_views(model, gradient)
    for i, (place, parameter) in enumerate(zip(places, model.parameters(), strict=True)):
        assert place.shape == parameter.shape
        place.fill_(i + 1.0)
    slots = {slot.name: slot for slot in layout.slots}
    for i, (name, _) in enumerate(model.named_parameters()):
        assert (slots[name].view(gradient) == i + 1.0).all()
    assert gradient.count_nonzero() == sum(p.numel() for p in model.parameters())  # nothing in the padding


def test_buffers_are_rebound_as_buffers() -> None:
    model = make_model()
    names = [name for name, _ in model.named_buffers()]
    vector = torch.zeros(Layout.of(model).size)
    bind(model, vector)
    assert [name for name, _ in model.named_buffers()] == names
    slot = next(slot for slot in Layout.of(model).slots if slot.name == "observation_moments.mean")
    slot.view(vector).fill_(4.0)
    assert (model.observation_moments.mean == 4.0).all()  # type: ignore[union-attr]


def test_a_bound_replica_follows_a_copy_of_the_vector() -> None:
    """What a worker's `pull` relies on."""
    source, replica = make_model(0), make_model(1)
    state = State.of(source, SGD(), 1)
    vector = torch.empty_like(state.vector)
    bind(replica, vector)
    assert not torch.equal(vector, state.vector)
    vector.copy_(state.vector)
    for name, tensor in tensors(source).items():
        assert torch.equal(tensors(replica)[name], tensor)


@pytest.mark.parametrize("rule", [SGD(), RMSprop(), Adam(amsgrad=True), RMSprop(shared=False)])
def test_state_tensors_round_trip(rule: Rule) -> None:
    state, other = State.of(make_model(0), rule, 3), State.of(make_model(1), rule, 3)
    rule.step(state.theta, torch.randn(state.layout.theta), state.statistics[0], 0.1)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert len(saved) == len(state.layout.slots) + sum(len(s) for s in state.statistics)
    for name, tensor in other.tensors().items():
        tensor.copy_(saved[name])
    for name, tensor in state.tensors().items():
        assert torch.equal(other.tensors()[name], tensor)
    # Continuing from either is the same.
    gradient = torch.randn(state.layout.theta) * (state.theta != 0)
    for each in (state, other):
        rule.step(each.theta, gradient, each.statistics[0], 0.1)
    for slot in state.layout.slots:
        assert torch.equal(slot.view(state.vector), slot.view(other.vector))


def test_statistics_are_one_set_or_one_per_worker() -> None:
    assert len(State.of(make_model(), RMSprop(shared=True), 3).statistics) == 1
    state = State.of(make_model(), RMSprop(shared=False), 3)
    assert len({statistics["square_avg"].data_ptr() for statistics in state.statistics}) == 3


@pytest.mark.parametrize("rule", [RMSprop(), Adam(amsgrad=True), Adam(eps_hat=True)])
def test_statistics_and_theta_stay_where_they_are_across_steps(rule: Rule) -> None:
    state = State.of(make_model(), rule, 1)
    before = {name: tensor.data_ptr() for name, tensor in state.tensors().items()}
    for _ in range(3):
        rule.step(state.theta, torch.randn(state.layout.theta), state.statistics[0], 0.1)
    assert {name: tensor.data_ptr() for name, tensor in state.tensors().items()} == before


@pytest.mark.parametrize("rule", [RMSprop(shared=False), Adam(amsgrad=True)])
def test_share_moves_everything_to_shared_memory_and_steps_keep_it_there(rule: Rule) -> None:
    model = make_model()
    state = State.of(model, rule, 2)
    state.share_()
    everything = [state.vector, *(tensor for s in state.statistics for tensor in s.values())]
    pointers = [tensor.data_ptr() for tensor in everything]
    for statistics in state.statistics:
        rule.step(state.theta, torch.randn(state.layout.theta), statistics, 0.1)
    assert all(tensor.is_shared() for tensor in everything)
    assert [tensor.data_ptr() for tensor in everything] == pointers
    assert all(tensor.is_shared() for tensor in state.tensors().values())
    # A model bound before follows, and alignment holds there too.
    state.vector.fill_(2.0)
    assert all((tensor == 2.0).all() for tensor in tensors(model).values())
    assert state.vector.data_ptr() % 64 == 0


def test_convolutional_is_told_by_the_layout() -> None:
    image = spaces.Box(0, 255, (84, 84, 1), np.uint8)
    assert Layout.of(ActorCritic(image, spaces.Discrete(2), ModelSpec())).convolutional
    assert not Layout.of(make_model()).convolutional
