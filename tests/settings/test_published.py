"""Published rows say what their sources ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polyactor.settings.presets import METHODS, base_config
from tests.helpers.settings import value_at

ATARI = {"algorithm.gamma": 0.99, "normalize.clip_reward": 1.0, "atari.frame_skip": 4}
ADAM = {"optimizer": "adam", "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.shared": True}
RMSPROP = {"optimizer": "rmsprop", "optimizer.lr": 7e-4, "optimizer.alpha": 0.99, "optimizer.max_grad_norm": 0.5}
TORCH = {"optimizer.eps": 1e-5, "optimizer.eps_inside": False, "optimizer.square_avg_start": 0.0}
TENSORFLOW = {"optimizer.eps": 1e-5, "optimizer.eps_inside": True, "optimizer.square_avg_start": 1.0}
HALF_MEAN = {"algorithm.value_coef": 0.5, "algorithm.reduction": "mean", "algorithm.entropy_coef": 0.01}
QUARTER_SUM = {"algorithm.value_coef": 0.25, "algorithm.reduction": "sum", "algorithm.entropy_coef": 0.01}
N_STEP = {"algorithm.gae_lambda": 1.0, "normalize.observation": False}
SERVER = {
    "algorithm": "a2c", "scheme": "param-server", "scheme.reduction": "sum", "scheme.apply": "each", **ATARI, **ADAM,
    **N_STEP, "algorithm.value_loss": "huber", "algorithm.value_coef": 0.25, "algorithm.reduction": "mean",
    "optimizer.max_grad_norm": 0.1, "model.torso": "nature-conv", "model.head_width": 512,
}  # fmt: skip
APPO = {
    "algorithm": "ppo", "scheme": "actor-learner", "scheme.batch": 1, **ATARI, **ADAM, "envs": 50,
    "algorithm.clip": 0.1, "algorithm.estimator": "gae", "algorithm.normalize_advantage": False,
    "algorithm.entropy_coef": 0.01, "algorithm.target_kl": None, "optimizer.max_grad_norm": 0.1,
    "model.torso": "nature-conv", "model.head_width": 512,
}  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    "paper-a3c-ff": {
        "algorithm": "a2c", "scheme": "hogwild", **ATARI, **N_STEP, "workers": 16, "envs": 1, "rollout": 5,
        "optimizer": "rmsprop", "optimizer.alpha": 0.99, "optimizer.eps": 0.1, "optimizer.eps_inside": True,
        "optimizer.square_avg_start": 0.0, "optimizer.lr_end": 0.0, "algorithm.entropy_coef": 0.01,
    },
    "paper-a3c-lstm": {"model.core": "lstm", "model.core_size": 256, "model.torso": "nature-cnn"},
    "paper-impala-shallow": {
        "algorithm": "vtrace", "scheme": "actor-learner", **ATARI, "rollout": 20, "algorithm.reduction": "sum",
        "algorithm.value_coef": 0.5, "algorithm.entropy_coef": 0.01, "optimizer": "rmsprop", "optimizer.lr": 6e-4,
        "optimizer.lr_end": 0.0, "optimizer.eps": 0.01, "optimizer.max_grad_norm": 40.0, "atari.life_loss": True,
    },
    "pong-a3c-lstm": {
        "scheme": "hogwild", **ATARI, **ADAM, **N_STEP, **HALF_MEAN, "workers": 2, "rollout": 40, "optimizer.lr": 1e-4,
        "optimizer.max_grad_norm": 40.0, "model.torso": "a3c-conv", "model.core_size": 256,
    },
    "pendulum-a3c-episode": {
        "algorithm.gamma": 0.9, "optimizer.lr": 1e-4, "algorithm.entropy_coef": 1e-4, "algorithm.value_coef": 1.0,
        "model.share_torso": False,
    },
    "breakout-a3c-lstm-4w": {
        "scheme": "hogwild", **ATARI, **ADAM, **N_STEP, **HALF_MEAN, "optimizer.beta2": 0.99, "optimizer.lr": 1e-4,
        "optimizer.eps": 1e-8, "optimizer.max_grad_norm": 40.0, "workers": 4, "rollout": 20, "stop_at": 60.0,
        "model.torso": "a3c-cnn", "model.core": "lstm", "atari.resize_height": 110, "atari.crop_top": 18,
        "atari.fire_reset": False, "atari.life_loss": False, "atari.one_life": False,
    },
    "pong-a3c-lstm-8w": {"workers": 8, "stop_at": 18.0},
    "spaceinvaders-a2c-nature": {
        "algorithm": "a2c", "scheme": "sync", **ATARI, **RMSPROP, **TORCH, **N_STEP, **HALF_MEAN, "envs": 16,
        "rollout": 5, "model.torso": "nature-cnn", "atari.one_life": True, "optimizer.lr_end": None,
    },
    "cartpole-a3c-server-0": {
        "optimizer.lr": 1e-3, "optimizer.eps": 1e-3, "rollout": 8, "scheme.accumulate": 4, "scheme.pull_every": 4,
        "scheme.updaters": 2, "model.hidden": (256,), "model.activation": "leaky-relu",
    },
    "pong-a3c-server-1": {
        **SERVER, "optimizer.lr": 1e-3, "optimizer.eps": 5e-4, "rollout": 8, "scheme.accumulate": 2,
        "scheme.pull_every": 2, "scheme.updaters": 2, "algorithm.entropy_coef": 0.01,
    },
    "pong-a3c-server-2": {**SERVER, "optimizer.lr": 1e-4, "optimizer.eps": 5e-4, "envs": 50, "rollout": 5},
    "pong-a3c-server-3": {
        **SERVER, "optimizer.lr": 1e-4, "workers": 4, "envs": 50, "rollout": 5, "scheme.accumulate": 4,
        "scheme.pull_every": 8, "scheme.updaters": 1, "scheme.when_full": "wait",
    },
    "pong-a3c-server-4": {
        **SERVER, "optimizer.lr": 1e-4, "workers": 3, "scheme.accumulate": 2, "scheme.pull_every": 4,
        "scheme.when_full": "drop",
    },
    "pong-a3c-server-5": {**SERVER, "optimizer.lr": 1e-4, "scheme.accumulate": 2, "scheme.pull_every": 2},
    "pong-a3c-server-6": {
        **SERVER, "optimizer.lr": 5e-4, "workers": 3, "scheme.accumulate": 1, "scheme.pull_every": 4,
        "scheme.when_full": "drop",
    },
    "pong-a3c-server-7": {
        **SERVER, "optimizer.lr": 1e-3, "workers": 4, "scheme.accumulate": 4, "scheme.pull_every": 8,
    },
    "pong-a3c-threads-9": {
        "scheme": "hogwild", "scheme.workers_as": "thread", "scheme.lock": "update", **ATARI, **ADAM, "workers": 4,
        "optimizer.lr": 3e-4, "algorithm.value_coef": 0.25, "algorithm.value_loss": "squared", "rollout": 5,
    },
    "breakout-a3c-threads-10": {"workers": 5, "scheme.workers_as": "thread", "atari.life_loss": True},
    "pong-appo-2": {**APPO, "workers": 4, "rollout": 32, "algorithm.gae_lambda": 0.95, "optimizer.lr": 3e-4},
    "breakout-appo-3": {**APPO, "workers": 4, "rollout": 32, "algorithm.gae_lambda": 0.9, "optimizer.lr": 1e-4},
    "qbert-appo-4": {**APPO, "workers": 5, "rollout": 16, "algorithm.gae_lambda": 0.95, "optimizer.lr": 3e-4},
    "pong-a3c-lstm-42px": {
        "scheme": "hogwild", **ATARI, **ADAM, **QUARTER_SUM, "optimizer.lr": 1e-4, "optimizer.max_grad_norm": 50.0,
        "workers": 16, "rollout": 20, "atari.frame_size": 42, "atari.stack": 1, "algorithm.gae_lambda": 1.0,
    },
    "pong-a3c-lstm-80px": {
        "scheme": "hogwild", **ATARI, **ADAM, **QUARTER_SUM, "optimizer.amsgrad": True, "workers": 36,
        "optimizer.max_grad_norm": None, "model.core_size": 512, "algorithm.gae_lambda": 0.92, "atari.frame_size": 80,
    },
    "bipedal-hardcore-a3c-lstm": {
        "scheme": "hogwild", **ADAM, "workers": 18, "algorithm.gamma": 0.98, "algorithm.gae_lambda": 0.8,
        "optimizer.amsgrad": True, "model.hidden": (320, 160), "model.core_size": 160, "algorithm.value_coef": 0.2,
    },
    "bipedal-a3c-lstm": {"workers": 8},
    "seaquest-a2c": {
        "scheme": "sync", **ATARI, **RMSPROP, **TORCH, **N_STEP, **HALF_MEAN, "envs": 16, "rollout": 5,
        "steps": 10_000_000, "optimizer.lr_end": None, "model.torso": "nature-cnn-32",
    },
    "enduro-a2c-baselines": {
        "scheme": "sync", **ATARI, **RMSPROP, **TENSORFLOW, **N_STEP, **HALF_MEAN, "envs": 16, "rollout": 5,
        "steps": 10_000_000, "optimizer.lr_end": 0.0, "model.torso": "nature-cnn",
    },
}  # fmt: skip
"""What the sources ran, whether our defaults say so or the preset does."""


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_row_is_what_its_source_ran(name: str) -> None:
    config = base_config(name)
    assert {path: value_at(config, path) for path in SOURCES[name]} == SOURCES[name]


def test_a_published_row_does_not_follow_our_own_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_config("pong-a2c-nature")
    ours = {kind: {"optimizer": "sgd", "algorithm.gamma": 0.5} for kind in METHODS["a2c"].values}
    monkeypatch.setitem(METHODS, "a2c", replace(METHODS["a2c"], values=ours))
    assert base_config("pong-a2c-nature") == before
    assert base_config("cartpole-a2c").algorithm.gamma == 0.5  # type: ignore[attr-defined]
