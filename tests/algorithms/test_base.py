"""What every algorithm has: an entropy coefficient that anneals, and metrics that it announces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyactor.algorithms import ALGORITHMS
from polyactor.data import Rollout
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec

MakeRollout = Callable[..., Rollout]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_entropy_coefficient_anneals_with_progress(name: str) -> None:
    algorithm: Any = ALGORITHMS[name](entropy_coef=0.1, entropy_coef_end=0.02)  # type: ignore[call-arg]
    assert [algorithm.at(p).entropy_coef for p in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([0.1, 0.06, 0.02, 0.02])
    assert replace(algorithm, entropy_coef_end=None).at(0.7).entropy_coef == 0.1
    assert algorithm.at(0.5) == replace(algorithm, entropy_coef=algorithm.at(0.5).entropy_coef)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_metrics_returned_are_those_announced_and_constants(make_rollout: MakeRollout, name: str) -> None:
    algorithm, x = ALGORITHMS[name](), make_rollout(5, 2, dtype=torch.float32)
    x = x.replace(behavior_params=torch.zeros(5, 2, 2))
    space = spaces.Box(-1, 1, x.observation.shape[2:], np.float32)
    averaged = algorithm.averaging is not None
    model = ActorCritic(
        space, spaces.Discrete(2), ModelSpec(hidden=(4,)), value_head=algorithm.outputs[1], averaged=averaged
    )
    batch = next(algorithm.batches(model, x, None, torch.Generator().manual_seed(0)))
    metrics = algorithm.loss(model, batch, model.average)[1]
    assert tuple(metrics) == algorithm.metrics
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
