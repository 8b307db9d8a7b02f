"""Values that differ by worker, and where workers may be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyactor.config import RayOptions
from polyactor.errors import UsageError
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from tests.helpers.counting import config_of


def test_per_worker_values_repeat_and_leave_the_rest_alone() -> None:
    config = config_of(workers=3, per_worker=("algorithm.entropy-coef=.01,.02", "optimizer.lr=1e-4"))
    seen = [config.for_worker(worker) for worker in range(3)]
    assert [each.algorithm.entropy_coef for each in seen] == [0.01, 0.02, 0.01]  # type: ignore[attr-defined]
    assert [each.optimizer.lr for each in seen] == [1e-4] * 3
    assert [replace(each, algorithm=config.algorithm, optimizer=config.optimizer) for each in seen] == [config] * 3


@pytest.mark.parametrize("entry", ["lr=1", "optimizer.lr=fast", "optimizer.rl=1", "model.core_size=1", "optimizer.lr="])
def test_per_worker_values_that_cannot_be(entry: str) -> None:
    with pytest.raises(UsageError, match="--per-worker"):
        config_of(per_worker=(entry,)).for_worker(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RayOptions(cpus=0.00001), "--ray.cpus 1e-05 is not allowed: it must be a multiple of 0.0001"),
        (RayOptions(cpus=1 / 3), "must be a multiple of 0.0001"),
        (
            RayOptions(address="somewhere"),
            "--ray.address somewhere is not allowed: it must be local, auto or host:port",
        ),
        *[
            (RayOptions(address=address), "must be local, auto or host:port")
            for address in ("127.0.0.1:99999", "ray://10.0.0.1:10001", " head:6379", "::1:6379", ":6379", "head:6379 ")
        ],
    ],
)
def test_places_that_cannot_be(options: RayOptions, said: str) -> None:
    RayOptions(address="127.0.0.1:6379", cpus=0.3).fits()
    for transport in ("local", "ray"):
        with pytest.raises(UsageError, match=said):
            check(replace(base_config("a3c-server", env="CartPole-v1"), ray=options, transport=transport))
