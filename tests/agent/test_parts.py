"""Every part of a worker is made of its own values."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from polyactor.agent.parts import make_model
from polyactor.algorithms import ACER, PPO
from polyactor.envs import env_spec
from polyactor.models.actor_critic import ActorCritic
from tests.helpers.counting import config_of
from tests.helpers.fresh import fresh


def test_every_part_of_a_worker_has_its_own_values() -> None:
    config = config_of(
        algorithm=ACER(), workers=2, per_worker=("algorithm.gamma=.5,.9", "algorithm.average-decay=.1,.2")
    )
    parts = fresh(config)
    actors = [parts.actor(worker)[1] for worker in range(2)]
    assert [actor.gamma for actor in actors] == [0.5, 0.9]
    for actor in actors:
        actor.envs.close()
    assert [parts.updater(worker).averaging for worker in range(2)] == [0.1, 0.2]
    whole = config_of(algorithm=PPO(), per_worker=("algorithm.epochs=2,3",))
    assert [repr(whole.for_worker(worker).algorithm.epochs) for worker in range(2)] == ["2", "3"]  # type: ignore[attr-defined]


@pytest.mark.fault("P15")
def test_models_made_at_once_in_two_threads_are_those_of_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    together, made = threading.Barrier(2), dict[int, Any]()

    def slowly(*given: Any, **values: Any) -> ActorCritic:
        """Both begin when both are about to, and then one draws while the other waits."""
        together.wait(10)
        if threading.current_thread().name == "2":
            together.wait(10)
        model = ActorCritic(*given, **values)
        if threading.current_thread().name == "1":
            together.wait(10)
        return model

    def make(seed: int) -> None:
        made[seed] = make_model(replace(config, seed=seed), spec)

    config, spec = config_of(), env_spec(config_of().env)
    alone = {seed: make_model(replace(config, seed=seed), spec) for seed in (1, 2)}
    before = torch.get_rng_state()
    monkeypatch.setattr("polyactor.agent.parts.ActorCritic", slowly)
    threads = [threading.Thread(target=make, args=(seed,), name=str(seed)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    for seed, model in alone.items():
        assert all(map(torch.equal, made[seed].parameters(), model.parameters()))
