"""A whole network of one's own: as ours it learns the same, under every scheme, with masks and memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from polyactor import transport
from polyactor.algorithms import A2C, PPO, VTrace
from polyactor.config import Normalize
from polyactor.errors import UsageError
from polyactor.models.spec import ModelSpec
from polyactor.optim import RMSprop
from polyactor.schemes import SCHEMES
from polyactor.shared.counters import Counter
from tests.helpers.fresh import fresh
from tests.helpers.networks import Recurrent, Whole
from tests.helpers.toys import Masked, Matching
from tests.models.test_own_parts import ACER_SMALL, config_of, trained

ALGORITHMS: dict[str, Any] = {"a2c": A2C(), "ppo": PPO(minibatches=2), "vtrace": VTrace(), "acer": ACER_SMALL}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_network_like_ours_learns_what_ours_does(algorithm: str) -> None:
    given: dict[str, Any] = {
        "algorithm": ALGORITHMS[algorithm], "normalize": Normalize(observation=True, reward=True), "steps": 24,
        "optimizer": RMSprop(lr=1e-3, eps=1.0),
    }  # fmt: skip
    ours = trained(config_of(ModelSpec(hidden=(32,)), **given)).state.views()
    own = trained(config_of(ModelSpec(network=Whole), **given)).state.views()
    names = {"trunk.torso.": "network.torso.", "policy.": "network.policy.", "value.": "network.value."}
    for name, tensor in ours.items():
        start = "average." * name.startswith("average.")
        bare = name.removeprefix("average.")
        theirs = next((bare.replace(a, b, 1) for a, b in names.items() if bare.startswith(a)), bare)
        torch.testing.assert_close(own[start + theirs], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("algorithm", ["a2c", "acer"])
def test_a_network_with_memory_trains_on_masked_actions_under_every_scheme(scheme: str, algorithm: str) -> None:
    def make(space: Any, params: int, values: int) -> nn.Module:
        assert (params, values) == (10, {"a2c": 1, "acer": 25}[algorithm])
        return Recurrent(space, params, values)

    config = config_of(
        ModelSpec(network=make), env=partial(Masked, parts=2), algorithm=ALGORITHMS[algorithm],
        scheme=SCHEMES[scheme](), steps=48,
    )  # fmt: skip
    parts = fresh(config)
    before = parts.state.vector.clone()
    for _ in transport.run(parts):
        pass
    assert parts.counters.version >= 1
    assert not parts.counters.table[:, Counter.ENV_ERRORS].any()  # each illegal choice would be one
    assert not torch.equal(before, parts.state.vector)
    assert bool(torch.isfinite(parts.state.vector).all())


@pytest.mark.parametrize("acted", ["box", "dict"])
def test_a_network_gives_the_parameters_of_numbers_and_reads_entries(acted: str) -> None:
    config = config_of(ModelSpec(network=Recurrent), env=partial(Matching, "dict", acted), algorithm=VTrace())
    parts = trained(config)
    model = parts.replica().model
    assert model.actions.dims
    assert len(model.initial_state(2)) == 2
    assert bool(torch.isfinite(parts.state.vector).all())


def test_a_minibatch_of_a_network_with_memory_is_whole_environments() -> None:
    config = config_of(ModelSpec(network=Recurrent), algorithm=PPO(minibatches=4))
    with pytest.raises(UsageError, match=r"--algorithm.minibatches 4 is not allowed: with memory .* at most 2"):
        fresh(config)
    fresh(config_of(ModelSpec(network=Whole), algorithm=PPO(minibatches=4)))


def test_a_dueling_head_needs_features() -> None:
    with pytest.raises(UsageError, match=r"--model.network is not allowed where .* give a --model.torso"):
        fresh(config_of(ModelSpec(network=Whole), env=partial(Matching, "box", "box"), algorithm=ACER_SMALL))


class Wrong(Whole):
    """A network with one fault."""

    def __init__(self, space: spaces.Box, params: int, values: int, fault: str) -> None:
        super().__init__(space, params, values)
        self.fault = fault
        if fault == "frozen":
            self.requires_grad_(False)

    def forward(self, x: Tensor, state: Any, is_first: Tensor) -> Any:
        params, value, state = super().forward(x, state, is_first)
        if self.fault == "in place":
            x.mul_(2)
        return {
            "policy": (params[..., 1:], value, state), "value": (params, value.unsqueeze(-1), state),
            "no state": (params, value), "state": (params, value, (value,)),
            "noise": (F.dropout(params), value, state), "batch": (params, value - value.mean(1, keepdim=True), state),
            "time": (params, value / value.norm(dim=0), state), "one": (params, value.squeeze(), state),
        }.get(self.fault, (params, value, state))  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "words"),
    {
        "policy": "its policy parameters of 2 steps of 3 environments have the shape [2, 3, 4], not [2, 3, 5]",
        "value": "its values of 2 steps of 3 environments have the shape [2, 3, 1], not [2, 3]",
        "no state": "it returned a tuple of 2, where a tuple of 3 is wanted",
        "state": "its next state is [([2, 3], torch.float32)], not [] as at the start",
        "in place": "it changes what it is given in place",
        "noise": "it gives other numbers for the same observations each time",
        "batch": "its numbers for an observation depend on the others of the batch",
        "time": "its numbers for a step differ where it computes one step at a time, as acting does",
        "one": "its values of 2 steps of 1 environment have the shape [2], not [2, 1]",
        "frozen": "it has no parameters that could be trained",
    }.items(),
)
def test_a_network_that_cannot_work_is_refused_in_a_sentence(fault: str, words: str) -> None:
    with pytest.raises(UsageError) as said:
        fresh(config_of(ModelSpec(network=partial(Wrong, fault=fault))))
    assert str(said.value).startswith("--model.network ")
    assert f"is not allowed: {words}" in str(said.value)
