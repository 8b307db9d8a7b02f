"""The proof: with one worker nothing is lagged or raced, so `hogwild` must be `sync` bit for bit.

Anything a scheme adds of its own shows here: a parameter pulled a batch late, a random stream shared, a statistic left
out of the shared memory, a schedule on the wrong progress.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyactor.algorithms import A2C
from polyactor.board import Board, Counter, Game
from polyactor.build import make_state
from polyactor.config import Config, Normalize
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam, RMSprop
from polyactor.schemes import Hogwild, Sync
from polyactor.schemes.hogwild import Lock

UPDATES, T, B = 50, 5, 3


class Walker(gymnasium.Env[Any, Any]):
    """A bright block on a 3-channel picture of bytes that is pushed about; chance decides rewards and ends."""

    size = 20  # the least the A3C convolutions can read

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (3, self.size, self.size), np.uint8)
        self.action_space = spaces.Discrete(4)
        self.place = np.zeros(2, int)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.integers(self.size - 4, size=2)
        return self._picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = ((0, 1), (1, 0), (0, -1), (-1, 0))[int(action)]
        self.place = np.clip(self.place + move, 0, self.size - 4)
        ends = self.np_random.random() < 0.1
        return self._picture(), float(self.np_random.normal(self.place[0])), ends, False, {}

    def _picture(self) -> Any:
        picture = self.np_random.integers(30, size=(3, self.size, self.size), dtype=np.uint8)
        x, y = self.place
        picture[:, x : x + 4, y : y + 4] += 200
        return picture


MODELS: dict[str, tuple[Any, ModelSpec]] = {
    "mlp": ("CartPole-v1", ModelSpec(hidden=(32, 32))),
    "lstm": ("CartPole-v1", ModelSpec(hidden=(32,), core="lstm", core_size=16)),
    "cnn": (Walker, ModelSpec(torso="a3c-cnn")),
}
RULES = {
    "rmsprop": RMSprop(lr=3e-3, lr_end=1e-4, max_grad_norm=0.5),
    "adam": Adam(lr=3e-3, lr_end=1e-4, max_grad_norm=0.5),
}
CASES: list[tuple[str, str, Lock]] = [
    ("mlp", "rmsprop", "none"),
    ("mlp", "adam", "update"),
    ("mlp", "adam", "both"),
    ("lstm", "adam", "none"),
    ("lstm", "rmsprop", "both"),
    ("cnn", "rmsprop", "update"),
    ("cnn", "adam", "none"),
]
"""Every model with both rules, every model with several locks, one model with all three; a worker costs seconds."""


@dataclass(frozen=True)
class End:
    """What a run leaves in memory."""

    vector: torch.Tensor
    statistics: tuple[dict[str, torch.Tensor], ...]
    counters: torch.Tensor
    metrics: dict[str, float | None]
    games: tuple[Game, ...]


def config_of(model: str, rule: str) -> Config:
    env, spec = MODELS[model]
    return Config(
        env=env,
        algorithm=A2C(gae_lambda=0.95, entropy_coef=0.05, entropy_coef_end=0.0),
        scheme=Sync(threads=1),
        optimizer=RULES[rule],
        steps=UPDATES * T * B,  # a rollout consumes T·B steps, or fewer where an episode ended: at least 50 updates
        seed=7,
        workers=1,
        envs=B,
        rollout=T,
        precision="fp32",
        model=spec,
        normalize=Normalize(observation=True, reward=True),
    )


def end_of(config: Config) -> End:
    state, board = make_state(config), Board(config.workers)
    start = state.vector.clone()
    for _ in config.scheme.run(config, state, board):
        pass
    assert board.version >= UPDATES
    assert config.steps <= board.steps < config.steps + T * B
    assert int(board.counters[0, Counter.SKIPPED]) == 0
    assert not torch.equal(start, state.vector)
    assert bool(torch.isfinite(state.vector).all())
    for name in ("observation_moments", "return_moments"):
        assert float(state.views()[f"{name}.count"]) > UPDATES
    statistics = tuple({name: tensor.clone() for name, tensor in each.items()} for each in state.statistics)
    counters = torch.from_numpy(board.counters[:, : Counter.PAUSED].copy())
    return End(state.vector.clone(), statistics, counters, board.metrics(), tuple(board.new_games()))


@cache
def sync_end(model: str, rule: str) -> End:
    return end_of(config_of(model, rule))


@cache
def hogwild_end(model: str, rule: str, lock: Lock) -> End:
    return end_of(replace(config_of(model, rule), scheme=Hogwild(lock=lock)))


def bits(tensor: torch.Tensor) -> bytes:
    """Unlike ==, tells 0 from −0 and one NaN from another."""
    return cast("bytes", tensor.contiguous().numpy().tobytes())


def assert_same(one: End, other: End) -> None:
    differing = int((one.vector != other.vector).sum())
    # Compared before it is asserted: pytest would explain megabytes of bytes, one by one.
    same = bits(one.vector) == bits(other.vector)
    assert same, f"{differing} of {len(one.vector)} numbers of the state differ"
    assert len(one.statistics) == len(other.statistics) == 1
    assert one.statistics[0].keys() == other.statistics[0].keys()
    for name, tensor in one.statistics[0].items():
        same = bits(tensor) == bits(other.statistics[0][name])
        assert same, name
    assert bits(one.counters) == bits(other.counters)
    assert one.metrics == other.metrics
    assert one.games == other.games


@pytest.mark.parametrize(("model", "rule", "lock"), CASES)
def test_one_hogwild_worker_is_sync(model: str, rule: str, lock: Lock) -> None:
    sync = sync_end(model, rule)
    assert sync.games
    assert sync.metrics["learning_rate"] == pytest.approx(1e-4, abs=1e-4)  # the schedule had run to its end
    assert_same(sync, hogwild_end(model, rule, lock))


@pytest.mark.parametrize("model", MODELS)
def test_sync_is_itself_again_and_not_another_seed(model: str) -> None:
    config = config_of(model, "adam")
    assert_same(sync_end(model, "adam"), end_of(config))
    with pytest.raises(AssertionError, match="of the state differ"):
        assert_same(sync_end(model, "adam"), end_of(replace(config, seed=8)))


def test_a_rounding_error_in_one_learning_rate_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has teeth: only this process, which runs sync, sees the change."""
    step = Adam.step

    def nudged(self: Adam, theta: Any, grad: Any, statistics: dict[str, Any], lr: float) -> None:
        last = float(statistics["step"]) == UPDATES - 1
        step(self, theta, grad, statistics, lr * (1 + 1e-6 * last))

    monkeypatch.setattr(Adam, "step", nudged)
    with pytest.raises(AssertionError, match="of the state differ"):
        assert_same(end_of(config_of("mlp", "adam")), hogwild_end("mlp", "adam", "both"))
