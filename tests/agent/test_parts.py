"""Every part of a worker is made of its own values."""

from __future__ import annotations

from polyactor.algorithms import ACER, PPO
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
