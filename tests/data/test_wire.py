"""What is written to a letter comes back: the same bits in fp32, gradients and parameters rounded in bf16."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.agent.parts import Parts
from polyactor.data import Gradients, Moments, Rollout
from polyactor.data.wire import ROUNDED, Wire, decode, encode, size
from polyactor.envs import env_spec
from polyactor.settings.presets import base_config
from polyactor.shared.gradient_slots import GradientSlot


def travelled(tensors: dict[str, Tensor], wire: Wire = "fp32") -> dict[str, Tensor]:
    """The tensors at the other end, over what was in their place before."""
    letter = pickle.loads(pickle.dumps(encode(tensors, wire)))
    for array in letter.values():
        array.flags.writeable = False  # as arrays are that lie in a store of objects
    into = {name: torch.full_like(x, 1) for name, x in tensors.items()}
    decode(letter, into)
    return into


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return (
        ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.numpy().tobytes() == theirs.numpy().tobytes()
    )


DTYPES = [torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]


@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=6)), max_size=6),
    wire=st.sampled_from(["fp32", "bf16"]),
)
@settings(max_examples=40, deadline=None)
def test_tensors_of_every_kind_come_back_to_the_bit(seed: int, shapes: list[Any], wire: Wire) -> None:
    rng = np.random.default_rng(seed)
    tensors = {}
    for i, (dtype, shape) in enumerate(shapes):
        like = torch.empty(shape, dtype=dtype).numpy()
        raw = rng.integers(0, 2 if dtype == torch.bool else 256, like.nbytes, dtype=np.uint8)
        tensors[f"any_{i}"] = torch.from_numpy(raw.view(like.dtype).reshape(shape))
    back = travelled(tensors, wire)
    assert all(same_bits(back[name], x) for name, x in tensors.items())


def test_a_rollout_comes_back_with_its_frames_sent_once() -> None:
    rng, t, b = np.random.default_rng(0), 20, 8
    frames = rng.integers(0, 256, (t + 4, b, 12, 12), dtype=np.uint8)
    stacks = np.stack([frames[i : i + 4].swapaxes(0, 1) for i in range(t + 1)])
    row = {
        "observation": {"screen": torch.zeros(4, 12, 12, dtype=torch.uint8), "vector": torch.zeros(3)},
        "is_first": torch.zeros((), dtype=torch.bool), "action": torch.zeros((), dtype=torch.int64),
        "reward": torch.zeros(()), "terminated": torch.zeros((), dtype=torch.bool),
        "behavior_log_prob": torch.zeros(()), "core_state": (torch.zeros(5), torch.zeros(5)),
        "version": torch.zeros((), dtype=torch.int64),
        "moments": {"return_moments": Moments(*(torch.zeros(s, dtype=torch.double) for s in ((), (2,), (2,))))},
    }  # fmt: skip
    joint = Rollout.blank(row, t=t, b=3 * b, actors=3)
    sent = Rollout.blank(row, t=t, b=b)
    for x in sent.tensors():
        x.copy_(torch.from_numpy(rng.integers(0, 2, x.shape)))
    sent.observation["screen"].copy_(torch.from_numpy(stacks))
    letter = encode(sent.named(), "bf16")
    plain = sum(x.nbytes for x in sent.tensors()) - sent.observation["screen"].nbytes
    assert size(letter) == plain + frames.nbytes + (t + 4) * b  # each frame once, and a byte for each
    decode(letter, joint.block(1, b).named())
    for name, x in joint.block(1, b).named().items():
        assert torch.equal(x, sent.named()[name]), name
    for i in (0, 2):
        assert not any(x.any() for x in joint.block(i, b).tensors())


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
@settings(max_examples=40, deadline=None)
def test_bf16_rounds_gradients_and_parameters_as_torch_does(numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    tensors = {name: x.clone() for name in (*sorted(ROUNDED), "statistics", "metrics", "reward")}
    back = travelled(tensors, "bf16")
    for name, there in back.items():
        assert same_bits(there, x.bfloat16().float() if name in ROUNDED else x), name
    assert all(same_bits(there, x) for there in travelled(tensors).values())


def test_a_number_that_is_none_stays_none() -> None:
    back = travelled({"vector": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])}, "bf16")["vector"]
    assert back[0].isnan()
    assert back[1:].tolist() == [float("inf"), -float("inf"), 0.0]
    assert back[3].signbit()


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_a_gradient_comes_back_with_its_statistics_as_they_were(wire: Wire) -> None:
    def moments(n: int, fill: float) -> dict[str, Moments]:
        shape = (n, 4, 5, 5)
        return {"observation": Moments(*(torch.full(s, fill, dtype=torch.double) for s in ((n,), shape, shape)))}

    slot = GradientSlot.blank(100, ["loss", "entropy"], moments(2, 0.0))
    theta = torch.randn(100, generator=torch.Generator().manual_seed(0))
    slot.put(Gradients(theta, {"loss": 1 / 3}, version=2**40 + 1, steps=40, moments=moments(1, 1 / 3)))
    slot.add(Gradients(torch.zeros(100), {"entropy": 0.1}, version=2**40 + 2, steps=40, moments=moments(1, 0.1)))
    there = GradientSlot.blank(100, ["loss", "entropy"], moments(2, 9.0))
    letter = encode(slot.named(), wire)
    decode(letter, there.named())
    got, wanted = there.gradients("sum"), slot.gradients("sum")
    assert same_bits(got.vector, theta if wire == "fp32" else theta.bfloat16().float())
    assert (got.metrics, got.version, got.steps) == (wanted.metrics, wanted.version, wanted.steps)
    assert all(same_bits(a, b) for a, b in zip(got.moments["observation"], wanted.moments["observation"], strict=True))
    assert letter["vector"].nbytes == {"fp32": 400, "bf16": 200}[wire]
    assert list(slot.named().values()) == list(slot.tensors())


@pytest.mark.parametrize("algorithm", ["a2c", "acer"])
def test_what_a_run_publishes_is_its_whole_vector(algorithm: str) -> None:
    config = replace(base_config(algorithm, env="CartPole-v1"), workers=1)
    state = Parts.fresh(config, env_spec(config.env, atari=config.atari)).state
    published = state.layout.split(state.vector)
    assert torch.equal(torch.cat(list(published.values())), state.vector)
    assert ("average" in published) == (algorithm == "acer")
    before = state.vector.clone()
    decode(encode(published), published)
    assert torch.equal(state.vector, before)
    decode(encode(published, "bf16"), published)
    assert torch.equal(state.theta, before[: state.layout.theta].bfloat16().float())


def test_a_letter_of_other_shapes_types_or_names_is_refused() -> None:
    letter = encode({"reward": torch.zeros(3)})
    with pytest.raises(ValueError, match="broadcast"):
        decode(letter, {"reward": torch.zeros(4)})
    with pytest.raises(TypeError):
        decode(letter, {"reward": torch.zeros(3, dtype=torch.double)})
    with pytest.raises(KeyError):
        decode(letter, {"action": torch.zeros(3)})
