"""The policy that comes out of a run."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import polyactor as pa
from polyactor.agent.parts import make_model
from polyactor.envs import env_spec
from polyactor.envs.answers import Unsound
from polyactor.envs.conversion import Conversion
from polyactor.errors import RunDirectoryError, UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.settings.serialize import from_json, to_json
from polyactor.storage import checkpoint
from polyactor.system.machine import torch_threads
from tests.helpers.policies import config_of, untrained
from tests.helpers.toys import Masked


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "polyactor/LQR-v0"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_act_gives_what_the_environment_takes(env_id: str, deterministic: bool) -> None:
    policy, env = untrained(env_id), gymnasium.make(env_id)
    observation, _ = env.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(30):
        action = policy.act(observation, deterministic=deterministic)
        assert env.action_space.contains(action), action
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
            policy.reset()


def test_a_loaded_policy_acts_as_the_run_did(finished: pa.Run) -> None:
    policy = pa.load(finished.path)
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.act(observation))
    best = checkpoint.load(finished.path, tag="best")
    model = make_model(policy.config, env_spec("CartPole-v1"))
    with torch.inference_mode():
        for name, tensor in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
            tensor.copy_(best.tensors[f"model.{name}"])
        params, _ = model.step(torch.as_tensor(observation).unsqueeze(0), (), torch.tensor([True]))
    assert policy.act(observation) == int(params.argmax())


def test_memory_lasts_until_reset() -> None:
    policy = untrained("Pendulum-v1", ModelSpec(hidden=(8,), core="lstm", core_size=8))
    observation = np.array([0.1, -0.2, 0.3], np.float32)
    first, second, third = (policy.act(observation) for _ in range(3))
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    policy.reset()
    assert np.array_equal(policy.act(observation), first)
    assert np.array_equal(policy.act(observation), second)


@pytest.mark.fault("P16")
def test_one_prediction_uses_one_thread_and_puts_the_number_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, threads, step = untrained("CartPole-v1"), list[int](), ActorCritic.step

    def counted(*given: Any, **named: Any) -> Any:
        threads.append(torch.get_num_threads())
        return step(*given, **named)

    monkeypatch.setattr(ActorCritic, "step", counted)
    with torch_threads(4):
        policy.act(np.zeros(4, np.float32))
        assert torch.get_num_threads() == 4
    assert threads == [1]


class Licensed(gymnasium.Env[Any, Any]):
    """Only one may exist."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.MultiDiscrete([2, 3], dtype=np.int32, start=[1, 2])
    taken = False

    def __init__(self) -> None:
        if Licensed.taken:
            raise OSError("the licence is in use")
        Licensed.taken = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def close(self) -> None:
        Licensed.taken = False


@pytest.mark.fault("P14")
def test_a_policy_keeps_no_environment() -> None:
    policy, env = untrained(Licensed), Licensed()
    with policy as same:
        assert same is policy
        assert env.action_space.contains(policy.act(np.zeros(2, np.float32)))
    policy.close()
    env.close()


def test_a_run_of_before_reads_its_images_as_it_did() -> None:
    """The last axis had the channels if it was at most 4, and else the first."""
    plain = to_json(config_of("polyactor/Catch-v0"))
    assert from_json(plain).model.channels == "auto"
    del plain["model"]["channels"]
    assert from_json(plain).model.channels == "last-up-to-4"


@pytest.mark.fault("D15")
@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (np.zeros(4), "an observation of the shape (4,) is not allowed: the policy sees the shape (3,)"),
        (np.zeros((1, 3)), "the policy sees the shape (3,); act takes one observation, without a batch axis"),
        ([0.0, 1.0], "an observation of a list is not allowed: the policy sees the shape (3,)"),
        ((np.zeros(3), {}), "an observation of a tuple is not allowed: the policy sees the shape (3,): "),
        (None, "an observation of a NoneType is not allowed: the policy sees the shape (3,)"),
    ],
)
def test_an_observation_of_another_shape_is_refused_naming_both(observation: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        untrained("Pendulum-v1").act(observation)


@pytest.mark.fault("D15")
def test_floats_are_no_pixels() -> None:
    policy = untrained("polyactor/Catch-v0")
    frame, _ = gymnasium.make("polyactor/Catch-v0").reset(seed=0)
    assert policy.act(frame) == policy.act(frame.astype(np.int64))
    with pytest.raises(
        UsageError, match="an observation of floats is not allowed: the policy sees bytes from 0 to 255"
    ):
        policy.act(frame / 255)


@pytest.mark.fault("D15")
@pytest.mark.parametrize("value", [300, -1])
def test_a_number_that_is_no_byte_is_refused(value: int) -> None:
    with pytest.raises(UsageError, match=f"an observation with {value} is not allowed: the policy sees bytes"):
        untrained("polyactor/Catch-v0").act(np.full((1, 44, 44), value))


@pytest.mark.fault("D15")
def test_a_category_that_does_not_exist_is_not_taken_for_another() -> None:
    conversion = Conversion(spaces.Discrete(5), spaces.Discrete(2), "Lake")
    assert conversion.encode(4).tolist() == [0, 0, 0, 0, 1]
    with pytest.raises(Unsound, match="returned the observation -1 where its space has Discrete"):
        conversion.encode(-1)


@pytest.mark.fault("D15")
def test_a_tag_is_a_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tag 5 is not allowed: it must be a text or none"):
        pa.load(tmp_path, tag=5)  # type: ignore[arg-type]


@pytest.mark.fault("D15")
@pytest.mark.parametrize(
    "value",
    [[0.0, 0.0, 0.0, None], ["0", "0", "0", "1"], np.zeros(4, complex), np.ma.array(np.zeros(4), mask=[0, 1, 0, 0])],
    ids=["none", "texts", "complex", "masked"],
)
def test_what_is_no_real_number_is_not_made_one(value: Any) -> None:
    policy = untrained("CartPole-v1")
    policy.act([0, 0.0, Fraction(1, 2), np.float64(0)])
    with pytest.raises(UsageError, match=r"an observation of .* is not allowed: the policy sees the shape"):
        policy.act(value)


def test_a_policy_is_saved_alone_and_read_like_a_run(finished: pa.Run, tmp_path: Path) -> None:
    policy = pa.load(finished.path)
    saved = policy.save(tmp_path / "alone")
    again = pa.load(saved)
    tensors = checkpoint.load(saved).tensors
    assert again.config == replace(policy.config, out=None)
    assert again.steps == policy.steps > 0
    assert tensors
    assert all(name.startswith("model.") for name in tensors)
    assert all(
        torch.equal(tensor, checkpoint.load(finished.path, tag="best").tensors[name])
        for name, tensor in tensors.items()
    )
    with pytest.raises(RunDirectoryError, match="taken"):
        policy.save(saved)


def test_a_policy_alone_is_not_resumed_and_begins_a_run(finished: pa.Run, tmp_path: Path) -> None:
    saved = pa.load(finished.path).save(tmp_path / "alone")
    with pytest.raises(
        UsageError, match=f"^{re.escape(str(saved))} cannot be resumed: .*--init-from {re.escape(str(saved))}$"
    ):
        pa.resume(saved)
    run = pa.train("a2c", env="CartPole-v1", init_from=str(saved), out=str(tmp_path / "new"), steps=64, quiet=True)
    assert run.path == tmp_path / "new"


def test_a_policy_of_masked_actions_warns_once_where_it_gets_no_mask() -> None:
    mask, seen = np.eye(5, dtype=np.int8)[3], np.zeros((1, 10), np.float32)
    policy = untrained(Masked)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert policy.act(seen, action_mask=mask) == 3
        assert not told
        for _ in range(3):
            policy.act(seen)
    (one,) = told
    assert "act was called without action_mask, so that every choice counts as legal" in str(one.message)
    assert one.filename == __file__


def test_a_mask_in_the_observation_and_an_environment_without_masks_need_no_word() -> None:
    mask, seen = np.eye(5, dtype=np.int8)[3], np.zeros((1, 10), np.float32)
    assert untrained(partial(Masked, "observation")).act({"action_mask": mask, "seen": seen}) == 3
    untrained(partial(Masked, "not")).act(seen)  # a warning would be an error
