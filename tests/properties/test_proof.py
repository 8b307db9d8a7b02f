"""The proof: with one worker and no lag nothing is raced, so every scheme over every transport is `sync` bit for bit.

That is the same operations on the same shapes, on one machine: docs/design.md, "Equal bits".
Anything a scheme adds of its own shows here: a parameter pulled a batch late, a random stream shared, a statistic left
out of the shared memory, a schedule on the wrong progress.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from gymnasium import spaces

from polyactor import transport
from polyactor.algorithms import A2C, ACER, PPO, VTrace
from polyactor.algorithms.base import Algorithm
from polyactor.config import Config, Normalize, Scheme
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam, RMSprop
from polyactor.schemes import ActorLearner, Hogwild, ParamServer, Sync
from polyactor.shared.counters import Counter, Game
from tests.helpers.fresh import fresh
from tests.helpers.marks import mostly_slow
from tests.helpers.toys import Everything, Matching

UPDATES, T, B = 25, 5, 8


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
    "residual": (Walker, ModelSpec(torso="impala-cnn", core="lstm", core_size=16, norm="layer")),
    "weight-norm": (Walker, ModelSpec(torso="a3c-cnn", norm="weight")),
    "noisy": ("CartPole-v1", ModelSpec(hidden=(16,), core="lstm", core_size=16, noisy="dense")),
    "everything": (Everything, ModelSpec(hidden=(16,), core="gru", core_size=16)),
    "beta": (partial(Matching, "box", "dict"), ModelSpec(hidden=(16,), distribution="beta")),
    "squashed": (partial(Matching, "box", "box"), ModelSpec(hidden=(16,), distribution="squashed")),
}
RULES = {
    "rmsprop": RMSprop(lr=3e-3, lr_end=1e-4, max_grad_norm=0.5),
    "adam": Adam(lr=3e-3, lr_end=1e-4, max_grad_norm=0.5),
}
ALGORITHMS: dict[str, Algorithm] = {
    "a2c": A2C(gae_lambda=0.95, entropy_coef=0.05, entropy_coef_end=0.0),
    "ppo": PPO(epochs=2, minibatches=2, entropy_coef=0.05, entropy_coef_end=0.0),
    "vtrace": VTrace(entropy_coef=0.05, entropy_coef_end=0.0),
    "acer": ACER(replay_ratio=3.0, replay_capacity=2_000, replay_start=100, entropy_coef=0.05, entropy_coef_end=0.0),
}
SCHEMES: dict[str, Scheme] = {
    "hogwild": Hogwild(),
    "hogwild-locked": Hogwild(lock="both"),
    "hogwild-threads": Hogwild(workers_as="thread", lock="update"),
    "param-server": ParamServer(),
    "param-server-mean": ParamServer(apply="mean", updaters=2, max_staleness=0),
    "actor-learner": ActorLearner(max_lag=0, threads=1),
}
TURNS = [name for name in SCHEMES if name != "hogwild-threads"]
LOCAL = [
    ("hogwild", "a2c", "mlp", "rmsprop"),
    ("hogwild", "ppo", "cnn", "adam"),
    ("hogwild", "vtrace", "lstm", "adam"),
    ("hogwild", "acer", "cnn", "rmsprop"),
    ("hogwild-locked", "a2c", "lstm", "adam"),
    ("hogwild-threads", "ppo", "lstm", "adam"),
    ("param-server", "a2c", "cnn", "rmsprop"),
    ("param-server", "ppo", "lstm", "adam"),
    ("param-server", "vtrace", "mlp", "adam"),
    ("param-server", "acer", "lstm", "adam"),
    ("param-server-mean", "a2c", "mlp", "adam"),
    ("actor-learner", "a2c", "lstm", "adam"),
    ("actor-learner", "ppo", "mlp", "adam"),
    ("actor-learner", "vtrace", "cnn", "rmsprop"),
    ("actor-learner", "acer", "mlp", "adam"),
    ("actor-learner", "vtrace", "everything", "adam"),
    pytest.param("param-server", "vtrace", "residual", "adam", marks=pytest.mark.slow),
    ("hogwild", "acer", "weight-norm", "rmsprop"),
    ("actor-learner", "acer", "beta", "adam"),
    ("actor-learner", "acer", "noisy", "adam"),
]
"""Over processes: every scheme with every algorithm and every model at least once; the slow suite has all of them."""
FAST_OVER_RAY = [
    ("param-server", "ppo", "lstm", "adam"),
    ("param-server-mean", "a2c", "mlp", "adam"),
    ("actor-learner", "vtrace", "cnn", "rmsprop"),
]
OVER_RAY = [
    pytest.param(*cell, marks=() if cell in FAST_OVER_RAY else pytest.mark.slow)
    for cell in (each.values if isinstance(each, ParameterSet) else each for each in LOCAL)
    if not cell[0].startswith("hogwild")
]


@dataclass(frozen=True)
class End:
    """What a run leaves in memory."""

    vector: torch.Tensor
    statistics: tuple[dict[str, torch.Tensor], ...]
    table: torch.Tensor
    metrics: dict[str, float | None]
    games: tuple[Game, ...]


def config_of(model: str, rule: str, algorithm: str = "a2c") -> Config:
    env, spec = MODELS[model]
    batches = {"ppo": 4, "acer": 3}.get(algorithm, 1)
    return Config(
        env=env,
        algorithm=ALGORITHMS[algorithm],
        scheme=Sync(threads=1),
        optimizer=RULES[rule],
        steps=-(-UPDATES // batches) * T * B,  # a rollout has T·B steps, or fewer where an episode ended
        seed=7,
        workers=1,
        envs=B,
        rollout=T,
        precision="fp32",
        model=spec,
        normalize=Normalize(observation=True, reward=True),
    )


def end_of(config: Config) -> End:
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    start = state.vector.clone()
    for _ in transport.run(parts):
        pass
    assert counters.version >= UPDATES
    assert config.steps <= counters.steps < config.steps + T * B
    assert int(counters.table[0, Counter.SKIPPED]) == 0
    assert not torch.equal(start, state.vector)
    assert bool(torch.isfinite(state.vector).all())
    counts = [float(tensor) for name, tensor in state.views().items() if name.endswith(".count")]
    assert len(counts) >= 2
    assert min(counts) >= UPDATES / 4 * B
    statistics = tuple({name: tensor.clone() for name, tensor in each.items()} for each in state.statistics)
    table = torch.from_numpy(counters.table[:, : Counter.PAUSED].copy())
    return End(state.vector.clone(), statistics, table, counters.metrics(), tuple(counters.new_games()))


@cache
def sync_end(model: str, rule: str, algorithm: str = "a2c", *, memo: bool = True) -> End:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not memo:
            monkeypatch.setattr(ActorCritic, "blank_memo", lambda *_, **__: None)
        return end_of(config_of(model, rule, algorithm))


def sync_beside(scheme: str, model: str, rule: str, algorithm: str) -> End:
    """Of operations on the same shapes: a learner is sent no memo, so it sees T·B images where `sync` saw B and B."""
    kept = scheme != "actor-learner" or model in ("mlp", "lstm")
    return sync_end(model, rule, algorithm, memo=kept)


def end_under(scheme: str, transport: str, model: str, rule: str, algorithm: str = "a2c") -> End:
    config = replace(config_of(model, rule, algorithm), scheme=SCHEMES[scheme], transport=transport)  # type: ignore[arg-type]
    return end_of(config)


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
    assert torch.equal(one.table[:, : Counter.GAMES], other.table[:, : Counter.GAMES])
    assert one.metrics == other.metrics
    # Who only collects may have begun a rollout that nobody learns from any more.
    assert other.games[: len(one.games)] == one.games
    assert len(other.games) <= len(one.games) + T * B


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model", mostly_slow(MODELS, fast=["lstm"]))
@pytest.mark.parametrize("scheme", mostly_slow(TURNS, fast=["hogwild", "param-server", "actor-learner"]))
def test_one_worker_taking_turns_is_sync(scheme: str, model: str, algorithm: str) -> None:
    assert_same(sync_beside(scheme, model, "adam", algorithm), end_under(scheme, "inline", model, "adam", algorithm))


@pytest.mark.parametrize(("scheme", "algorithm", "model", "rule"), LOCAL)
def test_one_worker_in_a_process_is_sync(scheme: str, algorithm: str, model: str, rule: str) -> None:
    sync = sync_beside(scheme, model, rule, algorithm)
    assert sync.games
    assert_same(sync, end_under(scheme, "local", model, rule, algorithm))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("scheme", "algorithm", "model", "rule"), OVER_RAY)
def test_one_worker_on_a_node_is_sync(scheme: str, algorithm: str, model: str, rule: str) -> None:
    assert_same(sync_beside(scheme, model, rule, algorithm), end_under(scheme, "ray", model, rule, algorithm))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_worker_in_a_process_is_sync_in_every_cell(scheme: str, model: str, algorithm: str, rule: str) -> None:
    assert_same(sync_beside(scheme, model, rule, algorithm), end_under(scheme, "local", model, rule, algorithm))


@pytest.mark.parametrize("model", mostly_slow(MODELS, fast=["lstm"]))
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
        assert_same(end_of(config_of("mlp", "adam")), end_under("hogwild", "local", "mlp", "adam"))
