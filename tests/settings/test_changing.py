"""Which settings can change during a run."""

from __future__ import annotations

from typing import Any

import pytest

from polyactor.config import Config
from polyactor.errors import UsageError
from polyactor.fields import replace_at
from polyactor.settings.changing import changed
from polyactor.settings.presets import base_config


def config_of(preset: str = "a2c", **values: Any) -> Config:
    config = base_config(preset, env="CartPole-v1")
    for path, value in values.items():
        config = replace_at(config, path.replace("__", "."), value)
    return config


@pytest.mark.parametrize(
    ("preset", "path", "value"),
    [
        ("a2c", "algorithm.entropy_coef", 0.5),
        ("a2c", "optimizer.lr", 1),
        ("a2c", "optimizer.max_grad_norm", None),
        ("ppo", "algorithm.epochs", 2),
        ("ppo", "algorithm.target_kl", 0.1),
        ("acer", "algorithm.replay_ratio", 1.5),
        ("acer", "algorithm.delta", None),
    ],
)
def test_numbers_of_algorithm_and_optimizer_can(preset: str, path: str, value: Any) -> None:
    config = config_of(preset)
    assert changed(config, {path: value}) == replace_at(config, path, value)


@pytest.mark.parametrize(
    ("preset", "values", "said"),
    [
        (
            "a2c",
            {"algorithm.entropy_coef": 5.0},
            "--algorithm.entropy-coef 5.0 is not allowed: it must be a number from",
        ),
        ("a2c", {"algorithm.entropy_coef": "high"}, "--algorithm.entropy-coef high is not allowed"),
        ("a2c", {"algorithm.entropy_coef": float("nan")}, "--algorithm.entropy-coef nan is not allowed"),
        ("a2c", {"algorithm.entropy_coef": None}, "--algorithm.entropy-coef None is not allowed: it must be a number"),
        ("a2c", {"optimizer.lr": True}, "--optimizer.lr True is not allowed: it must be a number"),
        ("a2c", {"algorithm.entropy": 0.1}, r"no setting algorithm.entropy \(did you mean 'algorithm.entropy_coef'"),
        ("a2c", {"": 0.1}, "there is no setting"),
        ("a2c", {"envs": 4}, "--envs cannot be changed during a run: only numbers of the algorithm and the optimizer"),
        ("a2c", {"scheme.threads": 4}, "--scheme.threads cannot be changed during a run: only numbers"),
        ("a2c", {"optimizer.shared": False}, "--optimizer.shared cannot be changed during a run: only numbers"),
        ("a2c", {"algorithm.reduction": "sum"}, "--algorithm.reduction cannot be changed during a run: only numbers"),
        ("a2c", {"algorithm": 1.0}, "there is no setting algorithm"),
        ("acer", {"algorithm.replay_capacity": 2_000}, "replay-capacity cannot .* run: the size of the replay buffers"),
        ("acer", {"algorithm.replay_ratio": 0.0}, "replay-ratio cannot .* run: the size of the replay buffers"),
        ("acer", {"algorithm.average_decay": 0.5}, "average-decay cannot .* run: the average network's decay is"),
        ("impala", {"algorithm.c_bar": 2.0}, "--algorithm.c-bar 2.0 is not allowed: it must be at most"),
    ],
)
def test_whatever_else_is_refused_in_a_sentence(preset: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        changed(config_of(preset), values)


def test_what_fits_only_together_is_looked_at_together() -> None:
    both = {"algorithm.c_bar": 2.0, "algorithm.rho_bar": 2.0}
    assert changed(config_of("impala"), both).algorithm.c_bar == 2.0  # type: ignore[attr-defined]


def test_a_discount_that_scales_rewards_is_settled_and_another_is_not() -> None:
    assert changed(config_of(normalize__reward=False), {"algorithm.gamma": 0.5}).algorithm.gamma == 0.5
    with pytest.raises(UsageError, match="gamma cannot be changed during a run: the scale of rewards"):
        changed(config_of(normalize__reward=True), {"algorithm.gamma": 0.5})


def test_where_the_statistics_of_an_optimizer_start_is_settled() -> None:
    config = base_config("a3c", env="CartPole-v1", optimizer="rmsprop")
    with pytest.raises(UsageError, match="square-avg-start cannot be changed during a run: the optimizer's statistics"):
        changed(config, {"optimizer.square_avg_start": 0.5})


def test_a_change_is_for_workers_with_values_of_their_own_too() -> None:
    own = ("algorithm.entropy-coef=.01,.02", "optimizer.lr=.1,.2")
    config = base_config("a3c", env="CartPole-v1")
    config = replace_at(replace_at(config, "per_worker", own), "workers", 2)
    assert changed(config, {"algorithm.entropy_coef": 0.5}).per_worker == own[1:]
