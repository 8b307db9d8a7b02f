"""Rollouts of environments that fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyactor.agent.actor import Actor
from polyactor.algorithms import A2C
from polyactor.data import Batch, Rollout
from polyactor.envs import Step, VectorEnv, make_envs
from polyactor.equations.returns import gae
from polyactor.errors import EnvironmentUnsupported
from tests.helpers.faulty_games import BOOM, LENGTH, RAISED, WRONG, Arcade, B, model_of, raises


def steps(envs: VectorEnv, count: int, seed: int = 10) -> list[Step]:
    envs.reset(seed)
    return [envs.step(np.full(B, t % 2)) for t in range(count)]


def actor_of(envs: VectorEnv, length: int = 10, **options: Any) -> tuple[Actor, list[Any]]:
    games: list[Any] = []
    actor = Actor(
        envs,
        model_of(envs),
        length=length,
        seed=10,
        generator=torch.Generator().manual_seed(0),
        gamma=0.9,
        on_game=lambda score, steps: games.append((score, steps)),
        **options,
    )
    return actor, games


@pytest.mark.fault("P3")
def test_a_rollout_masks_the_lost_row_and_bootstraps_the_one_before() -> None:
    t = 4
    arcade, said = Arcade({1: {("step", t + 1): raises(BOOM)}, 0: {("reset", 1): raises(BOOM)}}), list[str]()
    actor, games = actor_of(make_envs(arcade, B), on_lost=said.append)
    x = actor.collect(0)
    x = x.replace(memo=None)
    assert [sentence.split(" raised")[0] for sentence in said] == [f"environment {i} of Arcade" for i in (0, 1)]
    assert "in reset at step 0" in said[0]
    expected = torch.ones(10, B)
    expected[LENGTH, [0, 2]] = 0  # the fake step after a whole game
    expected[t, 1] = 0
    assert torch.equal(x.mask, expected)
    assert x.steps == 27
    assert torch.equal(x.reward, expected)
    new = arcade.made[-1]
    assert np.array_equal(x.observation[t, 1], arcade.made[1].seen[t])  # what was seen before it failed
    assert np.array_equal(x.observation[t + 1, 1], new.seen[0])
    assert games == [(LENGTH, LENGTH)] * 2

    model, gamma = actor.model, 0.9
    with torch.no_grad():
        value = model.unroll(x).value
    target = gae(x.reward, value, gamma * (~x.terminated).float(), x.mask, 1.0).target
    torch.testing.assert_close(target[t - 1, 1], 1 + gamma * value[t, 1])
    torch.testing.assert_close(target[t + 1, 1], sum(gamma**k for k in range(5)) + gamma**5 * value[10, 1])

    def gradient(rollout: Rollout) -> torch.Tensor:
        loss, _ = A2C(gamma=gamma).loss(model, Batch(rollout))
        found: Any = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return torch.cat([each.flatten() for each in found if each is not None])

    action, reward = x.action.clone(), x.reward.clone()
    action[t, 1], reward[t, 1] = 1 - action[t, 1], 50.0
    assert torch.equal(gradient(x), gradient(x.replace(action=action, reward=reward)))
    seen = x.observation.clone()
    seen[t, 1] += 1
    assert not torch.equal(gradient(x), gradient(x.replace(observation=seen)))  # the bootstrap
    for _ in range(3):
        actor.collect(0)
    assert set(games) == {(LENGTH, LENGTH)}  # no game is longer for what was lost, or shorter


@pytest.mark.fault("P3")
def test_games_of_the_others_are_those_without_the_fault() -> None:
    rollouts = []
    for faults in ({}, {1: {("step", 5): raises(BOOM)}}):
        actor, _ = actor_of(make_envs(Arcade(faults), B), length=20)
        rollouts.append(actor.collect(0))
    one, other = rollouts
    for name in ("observation", "is_first", "reward", "terminated"):
        first, second = getattr(one, name), getattr(other, name)
        assert torch.equal(first[:, [0, 2]], second[:, [0, 2]]), name
    assert not torch.equal(one.observation, other.observation)


KINDS = sorted(WRONG)
PLACES = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(["step", "reset"]), st.integers(1, 25), st.sampled_from(KINDS)),
    max_size=12,
)


@pytest.mark.fault("D1")
@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_nothing_that_is_not_finite_reaches_a_rollout(places: list[tuple[int, str, int, str]]) -> None:
    faults: dict[int, Any] = {}
    for number, verb, call, kind in places:
        if verb == "step" or kind in RAISED:
            faults.setdefault(number, {})[verb, call] = WRONG[kind][0]
    lost: list[str] = []
    try:
        actor, games = actor_of(make_envs(Arcade(faults), B), on_lost=lost.append)
        ended = np.zeros(B, bool)
        for _ in range(4):
            x = actor.collect(0)
            assert x.observation.isfinite().all()
            assert x.reward.isfinite().all()
            assert torch.equal(x.reward, x.mask)  # 1 in every real row, nothing in the others
            ended = actor.ended
    except EnvironmentUnsupported as error:
        assert "5 times in a row" in str(error)  # noqa: PT017
        return
    assert len(lost) <= len(places)
    assert set(games) <= {(float(LENGTH), LENGTH)}
    assert ended.shape == (B,)
