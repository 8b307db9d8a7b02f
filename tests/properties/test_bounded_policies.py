"""Policies within bounds, from the network to the environment: algorithms, schemes and action spaces with numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import polyactor as pa
from polyactor import transport
from polyactor.agent.learner import Learner
from polyactor.algorithms import ACER
from polyactor.algorithms.acer.acer import Region
from polyactor.algorithms.acer.critics import with_noise
from polyactor.envs import make_envs
from polyactor.errors import UsageError
from polyactor.evaluation.evaluate import play
from polyactor.models.spec import ModelSpec
from polyactor.schemes import SCHEMES
from tests.helpers.fresh import fresh
from tests.helpers.marks import mostly_slow
from tests.helpers.policies import config_of, untrained
from tests.properties.test_spaces import ALGORITHMS, ENOUGH, LENGTH, Cell, learned, updates

KINDS = ("beta", "squashed")
ACTED = ("box", "tuple", "dict")
ALL = list(itertools.product(ALGORITHMS, KINDS, ACTED))


class Bounded(Cell):
    """A combination of `test_spaces` with another distribution of numbers."""

    kind: Any = "beta"

    def config(self, **values: Any) -> Any:
        config = super().config(**values)
        return replace(config, model=replace(config.model, distribution=self.kind))


def cell(algorithm: str, kind: str, acted: str, core: str = "none") -> Bounded:
    return type("Bounded", (Bounded,), {"kind": kind})(algorithm, "box", acted, core)


@pytest.mark.parametrize(("algorithm", "kind", "acted"), ALL[::2])
def test_an_update_changes_theta_and_keeps_it_finite(algorithm: str, kind: str, acted: str) -> None:
    scheme = list(SCHEMES)[ALL.index((algorithm, kind, acted)) // 2 % len(SCHEMES)]
    updates(cell(algorithm, kind, acted).config(scheme=SCHEMES[scheme](), workers=1, steps=3 * LENGTH * 4))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "kind", "acted"), ALL)
def test_a_toy_is_solved(algorithm: str, kind: str, acted: str) -> None:
    share, _ = learned(cell(algorithm, kind, acted))
    assert share >= ENOUGH


def learner_of(config: Any) -> tuple[Any, Learner]:
    parts = fresh(config)
    replica, actor = parts.actor(0)
    return actor, parts.learner(0, replica)


@pytest.mark.parametrize("acted", ["box", "dict"])
@pytest.mark.parametrize("kind", KINDS)
def test_learning_and_replaying_say_of_actions_what_acting_said(kind: str, acted: str) -> None:
    config = cell("acer", kind, acted).config(scheme=SCHEMES["sync"](), workers=1, steps=10_000)
    actor, learner = learner_of(config)
    model = learner.replica.model
    for _ in range(3):
        fresh_one = actor.collect(0)
        learner.replay.add(fresh_one)  # type: ignore[union-attr]
    for x in (fresh_one, learner.sample(4, torch.Generator().manual_seed(0))):
        again = model.distribution(model.unroll(x).policy[:-1]).log_prob(x.action)
        torch.testing.assert_close(again, x.behavior_log_prob, rtol=0, atol=1e-5)
        assert x.behavior_params is not None
    batch = with_noise(model, x, ACER().dueling_samples, torch.Generator())
    pi = model.distribution(x.behavior_params)
    assert batch.targets["noise"].shape == (6, *x.reward.shape, pi.noise)  # type: ignore[attr-defined]
    actor.close()


@pytest.mark.parametrize(
    "region", mostly_slow(["params", "linear", "natural", "average", "none"], ["params", "average"])
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_trust_region_holds_them(kind: str, region: Region) -> None:
    config = cell("acer", kind, "dict").config(scheme=SCHEMES["sync"](), workers=1, steps=6 * 4 * LENGTH)
    acer = ACER(gamma=0.5, trust_region=region, replay_capacity=8_000, replay_start=0, replay_ratio=1.0)
    parts = fresh(replace(config, envs=4, algorithm=acer))
    for _ in transport.run(parts):
        pass
    assert bool(torch.isfinite(parts.state.vector).all())
    if region != "none":
        assert 0 <= float(parts.counters.metrics()["kl"] or 0) < 0.1


class Recorder(gymnasium.Env[Any, Any]):
    """Notes what it is sent."""

    seen: list[Any] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Box(np.array([-3, 0.1]), np.array([5, 0.3]), dtype=np.float64)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.seen.append(action)
        self.steps += 1
        return np.ones(2, np.float32), 1.0, self.steps == 5, False, {}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_and_drawn_actions_are_of_the_environments_box(kind: str) -> None:
    """Greedy ones are the mean of a Beta policy, and the tanh of the mean of a squashed one."""
    policy = untrained(Recorder, ModelSpec(hidden=(8,), distribution=kind))  # type: ignore[arg-type]
    ones = np.ones(2, np.float32)
    params, _ = policy.model.step(torch.ones(1, 2), (), torch.tensor([True]))
    first, second = (each.double() for each in params[0].split(2))
    if kind == "beta":
        alpha, beta = (1 + torch.nn.functional.softplus(each) for each in (first, second))
        share = alpha / (alpha + beta)
    else:
        share = (first.tanh() + 1) / 2
    low, high = torch.tensor([-3, 0.1]).double(), torch.tensor([5, 0.3]).double()
    greedy_action = (low + share * (high - low)).detach().numpy()
    np.testing.assert_allclose(policy.act(ones), greedy_action, rtol=1e-5)
    sampled = np.array([policy.act(ones, deterministic=False) for _ in range(100)])
    assert (sampled >= low.numpy()).all()
    assert (sampled <= high.numpy()).all()
    assert (sampled.std(0) > 0).all()
    Recorder.seen.clear()
    envs = make_envs(Recorder, 2)
    played = play(policy.model, envs, games=2, deterministic=True, seed=0)
    envs.close()
    assert len(played.scores) == 2
    assert len(Recorder.seen) >= 10
    for action in Recorder.seen:
        np.testing.assert_allclose(action, greedy_action, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_actor_sends_what_it_stores_within_the_bounds(kind: str) -> None:
    """The numbers before tanh are stored, and those after it are sent."""
    config = replace(config_of(Recorder), model=ModelSpec(hidden=(8,), distribution=kind), envs=1, rollout=4, workers=1)  # type: ignore[arg-type]
    Recorder.seen.clear()
    _, actor = fresh(config).actor(0)
    stored = actor.collect(0).action[:, 0].double().numpy()
    actor.close()
    within = np.tanh(stored) if kind == "squashed" else stored
    low, high = np.array([-3, 0.1]), np.array([5, 0.3])
    np.testing.assert_allclose(np.stack(Recorder.seen), low + (within + 1) / 2 * (high - low), rtol=1e-6)


class HalfBounded(Recorder):
    def __init__(self) -> None:
        super().__init__()
        half = spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 2], np.float32))
        self.action_space = spaces.Dict({"which": spaces.Discrete(3), "how": half})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_without_two_bounds_are_refused_before_there_is_a_file(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS:
        with pytest.raises(UsageError, match=f"--model.distribution {kind} .*number 2 of 2 here: use gauss"):
            pa.train(
                "a2c", env=HalfBounded, scheme=scheme, steps=100, model={"distribution": kind}, out=str(tmp_path / "x")
            )
    assert not list(tmp_path.iterdir())
