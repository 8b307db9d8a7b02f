"""Rewards are divided by the deviation of the return, then clipped; scores are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from polyactor.agent.reward_scaling import RewardScaling
from polyactor.algorithms import A2C
from polyactor.data import Batch
from polyactor.models.running_stats import RunningMoments
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh

REWARD = torch.tensor([[-8.0, 0.5], [0.0, 4.0]])


def of(variance: float, count: float = 10.0) -> RunningMoments:
    moments = RunningMoments(())
    moments.variance.fill_(variance)
    moments.count.fill_(count)
    return moments


@pytest.mark.parametrize(
    ("moments", "clip", "expected"),
    [
        (None, None, REWARD),
        (None, 1.0, torch.tensor([[-1.0, 0.5], [0.0, 1.0]])),
        (of(16.0), None, REWARD / 4),
        (of(16.0), 1.0, torch.tensor([[-1.0, 0.125], [0.0, 1.0]])),  # divided first
        (of(16.0, count=0.0), None, REWARD),  # nothing is known yet
        (of(0.0), 5.0, torch.tensor([[-5.0, 5.0], [0.0, 5.0]])),  # a return that never varied
    ],
    ids=["as they are", "clipped", "divided", "both", "unknown", "constant"],
)
def test_what_is_learned_from(moments: RunningMoments | None, clip: float | None, expected: Tensor) -> None:
    before = REWARD.clone()
    torch.testing.assert_close(RewardScaling(moments, clip)(REWARD), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(before, REWARD)  # the actor's own memory


class Seen(A2C):
    """Notes the rewards its loss is given."""

    def loss(self, model: object, batch: Batch, average: object = None):  # type: ignore[no-untyped-def,override]
        SEEN.append(batch.rollout.reward.clone())
        return super().loss(model, batch, average)  # type: ignore[arg-type]


SEEN: list[Tensor] = []


def test_a_learner_clips_and_the_rollout_keeps_the_score() -> None:
    config = base_config("a2c", env="CartPole-v1")
    config = replace(config, algorithm=Seen(), envs=2, normalize=replace(config.normalize, clip_reward=0.25))
    parts = fresh(config)
    replica, actor = parts.actor(0)
    SEEN.clear()
    rollout = actor.collect(replica.version)
    list(parts.learner(0, replica).gradients(rollout))
    actor.close()
    assert rollout.reward.max() == 1.0
    assert SEEN[0].max() == 0.25
