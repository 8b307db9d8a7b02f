"""A learner differentiates at the newest parameters, and so does an algorithm that goes on to its next batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
import torch

from polyactor.algorithms.a2c import A2C
from polyactor.config import Config
from polyactor.data import Batch, Rollout
from polyactor.errors import UsageError
from polyactor.optim.rules import SGD
from polyactor.schemes import Hogwild
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh


class Looks(A2C):
    """Looks at θ' before and after its batch."""

    def batches(self, model: Any, rollout: Rollout, replay: Any, generator: Any) -> Generator[Batch, Any, None]:
        SEEN.append(next(model.parameters()).clone())
        yield Batch(rollout)
        SEEN.append(next(model.parameters()).clone())


class Nothing(A2C):
    """Never gives a batch."""

    def batches(self, model: Any, rollout: Rollout, replay: Any, generator: Any) -> Generator[Batch, Any, None]:
        return
        yield


SEEN: list[torch.Tensor] = []


def config_with(algorithm: A2C, steps: int = 1_000) -> Config:
    config = base_config("a3c", env="CartPole-v1")
    return replace(config, algorithm=algorithm, scheme=Hogwild(), optimizer=SGD(lr=1.0), workers=1, steps=steps)


def test_after_its_batch_an_algorithm_has_the_parameters_with_it_applied() -> None:
    parts = fresh(config_with(Looks()))
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    SEEN.clear()
    for gradients in learner.gradients(actor.collect(replica.version)):
        updater.apply(gradients)
    actor.envs.close()
    before, after = SEEN
    assert not torch.equal(before, after)
    replica.pull()
    assert torch.equal(after, next(replica.model.parameters()))


def test_an_algorithm_that_gives_no_batch_ends_the_run_with_a_sentence() -> None:
    parts = fresh(config_with(Nothing()))
    replica, actor = parts.actor(0)
    learner = parts.learner(0, replica)
    rollout = actor.collect(replica.version)
    actor.envs.close()
    for _ in range(999 // rollout.steps):
        assert list(learner.gradients(rollout)) == []
    with pytest.raises(UsageError, match=r"--algorithm Nothing .* none of the run's \d+ steps"):
        next(learner.gradients(rollout))
