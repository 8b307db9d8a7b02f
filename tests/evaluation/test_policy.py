"""The policy that comes out of a run."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import polyactor as pa
from polyactor.agent.parts import make_model
from polyactor.envs import env_spec
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.storage import checkpoint
from polyactor.system.machine import torch_threads
from tests.helpers.policies import untrained


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


@pytest.mark.fault("P22")
def test_one_prediction_uses_one_thread_and_puts_the_number_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, threads, step = untrained("CartPole-v1"), list[int](), ActorCritic.step

    def counted(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        return step(*given)

    monkeypatch.setattr(ActorCritic, "step", counted)
    with torch_threads(4):
        policy.act(np.zeros(4, np.float32))
        assert torch.get_num_threads() == 4
    assert threads == [1]
