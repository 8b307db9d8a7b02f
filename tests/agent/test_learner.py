"""A learner differentiates each batch at the newest parameters, which it pulls when the batch is given."""

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
    """Looks at θ' after each of its batches."""

    def batches(self, model: Any, rollout: Rollout, replay: Any, generator: Any) -> Generator[Batch, Any, None]:
        yield Batch(rollout)
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


def test_after_a_batch_an_algorithm_has_the_parameters_it_was_differentiated_at() -> None:
    parts = fresh(config_with(Looks()))
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    SEEN.clear()
    expected = []
    for gradients in learner.gradients(actor.collect(replica.version)):
        expected.append(next(replica.model.parameters()).clone())
        updater.apply(gradients)
    actor.envs.close()
    assert not torch.equal(*expected)
    assert all(map(torch.equal, SEEN, expected))
    assert len(SEEN) == 2


def test_the_images_of_a_replayed_batch_are_scaled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The average network sees those that the network sees, also where the running moments have moved."""
    config = base_config("acer", env="polyactor/Catch-v0")
    normalize = replace(config.normalize, observation=True)
    config = replace(config, workers=1, envs=2, rollout=3, normalize=normalize, steps=1_000)
    algorithm = replace(config.algorithm, replay_start=1, replay_ratio=20.0, on_policy=False)  # type: ignore[call-arg]
    parts = fresh(replace(config, algorithm=algorithm))
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    average, scaled = replica.model.average, list[int]()
    assert average is not None
    for model in (replica.model, average):
        original = model.prepared
        monkeypatch.setattr(model, "prepared", lambda x, *more, of=original: scaled.append(len(x)) or of(x, *more))
    rollout, batches = actor.collect(replica.version), 0
    actor.envs.close()
    scaled.clear()
    for gradients in learner.gradients(rollout):
        updater.apply(gradients)
        batches += 1
    assert batches > 5
    assert sum(scaled) == batches * (3 + 1) * 2  # T rows, and the one to bootstrap from


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
