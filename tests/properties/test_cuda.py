"""Learning on a GPU gives what learning on the CPU gives. Without a GPU these say that they were skipped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyactor import transport
from polyactor.config import Config
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")


def config_of(method: str, scheme: str, env: str) -> Config:
    config = base_config(method, env=env, scheme=scheme)
    return replace(config, device="cuda", precision="fp32", envs=4, rollout=8, steps=2_000, seed=1)


@pytest.mark.parametrize("env", ["CartPole-v1", "polyactor/Catch-v0"])
@pytest.mark.parametrize("method", ["a2c", "ppo", "vtrace"])
def test_gradients_are_those_of_the_cpu(method: str, env: str) -> None:
    config = config_of(method, "sync", env)
    parts = fresh(config)
    replica, actor = parts.actor(0)
    rollout = actor.collect(replica.version)
    there = parts.replica(device="cuda")
    assert next(there.model.parameters()).is_cuda
    config = replace(config, algorithm=replace(config.algorithm, **({"minibatches": 1} if method == "ppo" else {})))
    ours, theirs = (next(parts.learner(0, each).gradients(rollout)).vector for each in (replica, there))
    assert not theirs.is_cuda
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.9999
    actor.envs.close()


@pytest.mark.parametrize("env", ["CartPole-v1", "polyactor/Catch-v0"])
@pytest.mark.parametrize("scheme", ["sync", "actor-learner"])
@pytest.mark.parametrize("method", ["a2c", "ppo", "vtrace", "acer"])
def test_training_moves_the_parameters(method: str, scheme: str, env: str) -> None:
    config = config_of(method, scheme, env)
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    before = state.theta.clone()
    for _ in transport.run(parts):
        pass
    assert counters.steps >= config.steps
    assert state.theta.isfinite().all()
    assert not torch.equal(state.theta, before)
