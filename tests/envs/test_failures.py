"""An environment that fails costs its game, and neither the run nor the others' games."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from polyactor.agent.actor import Actor
from polyactor.algorithms import A2C
from polyactor.data import Batch, Rollout
from polyactor.envs import Step, VectorEnv, check_exact, make_envs
from polyactor.envs.check import inspect
from polyactor.envs.serial_vector_env import MOST_FAILURES, SOUND_AFTER
from polyactor.equations.returns import gae
from polyactor.errors import EnvironmentUnsupported
from polyactor.evaluation.evaluate import play
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec

B, LENGTH, FOR_EVER = 3, 7, 10**9
Fault = Callable[[Any], Any]
"""From an answer to what is answered instead."""


class Game(gymnasium.Env[Any, Any]):
    """Noise from its seed and reward 1; games of `LENGTH` steps. Fails where `faults` say so: (verb, call) → how."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, faults: dict[tuple[str, int], Fault], length: int = LENGTH) -> None:
        self.faults, self.length = faults, length
        self.calls = {"reset": 0, "step": 0}
        self.time, self.closed = 0, 0
        self.seeds: list[int | None] = []
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.seeds.append(seed)
        return self.answer("reset", (self.observation(), {}))  # type: ignore[no-any-return]

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.answer("step", (self.observation(), 1.0, self.time == self.length, False, {}))

    def observation(self) -> Any:
        self.seen.append(self.np_random.normal(size=2).astype(np.float32))
        return self.seen[-1].copy()

    def answer(self, verb: str, answer: Any) -> Any:
        self.calls[verb] += 1
        fault = self.faults.get((verb, self.calls[verb]))
        return answer if fault is None else fault(answer)

    def close(self) -> None:
        self.closed += 1


class Arcade:
    """Makes games, numbered as they are made; `faults` by number, an exception instead of a game that is not made."""

    def __init__(self, faults: dict[int, Any] | None = None, *, always: Any = None, length: int = LENGTH) -> None:
        self.faults, self.always, self.length = faults or {}, always or {}, length
        self.made: list[Any] = []

    def __call__(self) -> Game:
        faults = self.faults.get(len(self.made), self.always if len(self.made) >= B else {})
        self.made.append(None)
        if isinstance(faults, BaseException):
            raise faults
        self.made[-1] = Game(faults, self.length)
        return self.made[-1]  # type: ignore[no-any-return]


def raises(error: BaseException) -> Fault:
    def fault(answer: Any) -> Any:
        raise error

    return fault


def leaves(answer: Any) -> Any:
    sys.exit(3)


def observes(observation: Any) -> Fault:
    return lambda answer: (observation, *answer[1:])


def pays(reward: Any) -> Fault:
    return lambda answer: (answer[0], reward, *answer[2:])


BOOM = ValueError("boom\nand more")
RAISED: dict[str, tuple[Fault, str]] = {
    "raise": (raises(BOOM), "raised ValueError: boom"),
    "exit": (leaves, "raised SystemExit: 3"),
    "nan": (observes(np.array([0, np.nan], np.float32)), "returned an observation that is not finite"),
    "infinite": (observes(np.array([0, 1e300])), "returned an observation that is not finite|overflow"),
    "shape": (observes(np.zeros(3, np.float32)), r"returned an observation of shape \(3,\) where its space has \(2,\)"),
    "broadcast": (observes(np.float32(1)), r"returned an observation of shape \(\) where its space has \(2,\)"),
    "nothing": (observes(None), "returned an observation of object, which cannot be cast to float32"),
    "complex": (observes(np.zeros(2, complex)), "returned an observation of complex128, which cannot be cast"),
    "ragged": (observes([1.0, [2.0, 3.0]]), "returned an observation that is no array"),
}
WRONG: dict[str, tuple[Fault, str]] = RAISED | {
    "reward-nan": (pays(float("nan")), "returned the reward nan, which is not finite"),
    "reward-inf": (pays(np.float64("-inf")), "returned the reward -inf, which is not finite"),
    "reward-large": (pays(1e300), r"returned the reward 1e\+300, which is not finite"),
    "reward-larger": (pays(10**400), "returned the reward inf, which is not finite"),
    "reward-text": (pays("1.0"), "returned the reward '1.0', which is no number"),
    "reward-array": (pays(np.ones(2)), r"returned the reward array\(\[1., 1.\]\), which is no number"),
    "reward-one": (pays(torch.ones(1)), r"returned the reward tensor\(\[1.\]\), which is no number"),
    "reward-none": (pays(None), "returned the reward None, which is no number"),
    "four": (lambda answer: answer[:4], "failed: step returned 4 values where Gymnasium has 5"),
    "one": (lambda answer: answer[0], "failed: step returned a single ndarray where Gymnasium has 5"),
}


def steps(envs: VectorEnv, count: int, seed: int = 10) -> list[Step]:
    envs.reset(seed)
    return [envs.step(np.full(B, t % 2)) for t in range(count)]


def same(one: Step, other: Step, rows: Any) -> None:
    for name in ("observation", "reward", "terminated", "done", "lost"):
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name)[rows])


@pytest.mark.fault("P3", "D1", "D2")
@pytest.mark.parametrize("kind", WRONG)
def test_a_fault_in_a_step_costs_one_game(kind: str) -> None:
    fault, why = WRONG[kind]
    arcade = Arcade({1: {("step", 5): fault}})
    found, healthy = steps(make_envs(arcade, B), 30), steps(make_envs(Arcade(), B), 30)
    for t, (step, sound) in enumerate(zip(found, healthy, strict=True)):
        same(step, sound, [0, 2])
        assert step.lost.tolist() == [False, t == 4, False]
        if t < 4:
            same(step, sound, 1)
    (sentence,) = found[4].why
    assert not any(step.why for t, step in enumerate(found) if t != 4)
    pattern = rf"environment 1 of Arcade .*({why}).* at step 5, after the action 0: made anew"
    assert re.fullmatch(pattern, sentence), sentence
    assert len(arcade.made) == B + 1
    assert arcade.made[1].closed == 1
    assert arcade.made[1].calls["step"] == 5
    new = arcade.made[B]
    assert new.calls["step"] + new.calls["reset"] == 1 + 30 - 5
    assert new.seeds[0] is not None
    assert new.seeds[0] not in range(10, 10 + B)
    assert (found[4].reward[1], found[4].terminated[1], found[4].done[1]) == (0, False, False)
    for step, seen in zip(found[4:], new.seen, strict=True):
        np.testing.assert_array_equal(step.observation[1], seen)
    games = [t for t, step in enumerate(found) if step.done[1]]
    assert games[0] == 4 + LENGTH  # the new game is a whole one


@pytest.mark.fault("P3", "D1", "D2")
@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("reset", [1, 2])
def test_a_fault_in_a_reset_costs_a_reset(kind: str, reset: int) -> None:
    fault, why = RAISED[kind]
    arcade = Arcade({1: {("reset", reset): fault}})
    found, healthy = steps(make_envs(arcade, B), 20), steps(make_envs(Arcade(), B), 20)
    at = (reset - 1) * LENGTH  # the step that tells of it
    for t, (step, sound) in enumerate(zip(found, healthy, strict=True)):
        same(step, sound, [0, 2])
        assert bool(step.why) == (t == at)
        assert step.lost.tolist() == [False, reset == 2 and t == at, False]
        assert (step.reward[1], step.done[1]) == (sound.reward[1], sound.done[1])
    when = "at step 0" if reset == 1 else "at step 8, after the action 0"
    pattern = rf"environment 1 of Arcade .*({why}).* in reset {when}: made anew"
    assert re.fullmatch(pattern, found[at].why[0]), found[at].why
    assert len(arcade.made) == B + 1


def test_an_observation_of_an_old_reset_is_named() -> None:
    arcade = Arcade({0: {("reset", 1): lambda answer: answer[0]}})
    (step,) = steps(make_envs(arcade, B), 1)
    assert "failed: reset returned a single ndarray where Gymnasium has 2 in reset" in step.why[0]


@pytest.mark.fault("D2")
def test_four_values_are_named_also_where_a_wrapper_meets_them_first() -> None:
    arcade = Arcade({1: {("step", 2): lambda answer: answer[:4]}})
    found = steps(make_envs(arcade, B, max_episode_steps=50), 3)
    assert "failed: step returned 4 values where Gymnasium has 5 at step 2" in found[1].why[0]

    def unpacks(answer: Any) -> Any:
        _, _, _, _, _ = answer[:4]

    found = steps(make_envs(Arcade({1: {("step", 2): unpacks}}), B), 3)  # of its own, which is something else
    assert "raised ValueError: not enough values to unpack" in found[1].why[0]


@pytest.mark.parametrize(
    ("observation", "reward"),
    [
        (np.array([1.0, 2.0]), np.float64(2)),
        ([1.0, 2.0], 2),
        ([1, 2], np.float32(2)),
        (np.array([1, 2]), np.array(2)),
        (torch.tensor([1.0, 2.0]), torch.tensor(2)),
        (np.array([1, 2], ">f4"), np.int8(2)),
    ],
)
def test_what_can_be_cast_is_no_fault(observation: Any, reward: Any) -> None:
    arcade = Arcade({1: {("step", 1): lambda answer: (observation, reward, *answer[2:])}})
    (step,) = steps(make_envs(arcade, B), 1)
    assert step.why == ()
    assert not step.lost.any()
    assert step.observation[1].tolist() == [1, 2]
    assert step.reward[1] == 2


@pytest.mark.fault("P3")
def test_five_in_a_row_stop_the_run_with_one_sentence() -> None:
    always = {("step", 2): raises(BOOM)}
    arcade = Arcade({1: always}, always=always)
    envs = make_envs(arcade, B)
    envs.reset(0)
    for t in range(2 * MOST_FAILURES - 1):
        assert envs.step(np.ones(B, np.int64)).lost.tolist() == [False, t % 2 == 1, False]
    with pytest.raises(EnvironmentUnsupported) as caught:
        envs.step(np.ones(B, np.int64))
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is BOOM
    assert str(caught.value) == (
        "environment 1 of Arcade failed 5 times in a row without 100 good steps in between; the last time it raised"
        " ValueError: boom at step 10, after the action 1."
    )
    assert [game.closed for game in arcade.made] == [0, 1, 0, 1, 1, 1, 1]
    envs.close()


def test_failures_of_different_environments_are_no_row() -> None:
    always = {("step", 30): raises(BOOM)}
    envs = make_envs(Arcade(dict.fromkeys(range(B), always), always=always, length=FOR_EVER), B)
    found = steps(envs, 30 * (MOST_FAILURES - 1))
    assert sum(int(step.lost.sum()) for step in found) == B * (MOST_FAILURES - 1)


@pytest.mark.parametrize("good", [SOUND_AFTER, SOUND_AFTER - 1])
def test_good_steps_forgive(good: int) -> None:
    always = {("step", good + 1): raises(BOOM)}
    envs = make_envs(Arcade({1: always}, always=always, length=FOR_EVER), B)
    if good < SOUND_AFTER:
        with pytest.raises(EnvironmentUnsupported, match="5 times in a row"):
            steps(envs, MOST_FAILURES * (good + 1))
    else:
        assert sum(step.lost[1] for step in steps(envs, 9 * (good + 1))) == 9


def test_an_environment_that_cannot_be_made_anew_is_tried_again() -> None:
    gone = RuntimeError("no port")
    arcade = Arcade({1: {("step", 2): raises(BOOM)}, B: gone, B + 1: SystemExit("licence")})
    found = steps(make_envs(arcade, B), 3)
    assert found[1].lost.tolist() == [False, True, False]
    assert found[1].why == (
        "environment 1 of Arcade raised ValueError: boom at step 2, after the action 1",
        "environment 1 of Arcade could not be made: RuntimeError: no port at step 2, after the action 1",
        "environment 1 of Arcade could not be made: SystemExit: licence at step 2, after the action 1: made anew",
    )
    np.testing.assert_array_equal(found[1].observation[1], arcade.made[-1].seen[0])

    arcade = Arcade({1: {("step", 2): raises(BOOM)}} | dict.fromkeys(range(B, 99), gone))
    with pytest.raises(EnvironmentUnsupported, match="the last time it could not be made: RuntimeError: no port") as c:
        steps(make_envs(arcade, B), 3)
    assert c.value.__cause__ is gone
    assert len(arcade.made) == B + MOST_FAILURES - 1


def test_a_reset_that_always_fails_stops_the_run() -> None:
    always = {("reset", 1): raises(BOOM)}
    arcade = Arcade({0: always}, always=always)
    with pytest.raises(EnvironmentUnsupported, match=r"environment 0 .* raised ValueError: boom in reset at step 0\."):
        make_envs(arcade, B).reset(0)
    assert [game.closed for game in arcade.made if game.closed] == [1] * MOST_FAILURES


@pytest.mark.fault("D2")
def test_another_space_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    arcade = Arcade({1: {("step", 2): raises(BOOM)}})

    def shrunk() -> Game:
        game = arcade()
        if len(arcade.made) > B:
            game.action_space = spaces.Discrete(1)
        return game

    with pytest.raises(EnvironmentUnsupported, match=r"has the action space Discrete\(1\) once and Discrete\(2\)"):
        steps(make_envs(shrunk, B), 3)
    assert [game.closed for game in arcade.made[B:]] == [1] * (MOST_FAILURES - 1)


def test_environments_must_be_alike_from_the_start() -> None:
    sizes = iter([2, 3])

    class Varied(Game):
        def __init__(self) -> None:
            super().__init__({})
            self.observation_space = spaces.Box(-1, 1, (next(sizes),), np.float32)

    with pytest.raises(EnvironmentUnsupported, match="Varied has the observation space"):
        make_envs(Varied, 2)


def test_closing_may_fail_and_an_interrupt_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Game, "close", lambda self: sys.exit(4))
    arcade = Arcade({1: {("step", 2): raises(BOOM)}, 2: {("step", 4): raises(KeyboardInterrupt())}})
    envs = make_envs(arcade, B)
    assert steps(envs, 3)[1].lost[1]
    with pytest.raises(KeyboardInterrupt):
        envs.step(np.zeros(B, np.int64))
    envs.close()


def test_seeds_of_new_games_are_those_of_the_run() -> None:
    def seeds(seed: int | None) -> list[int | None]:
        always = {("step", 3): raises(BOOM)}
        arcade = Arcade({0: always, 1: always}, always=always)
        steps(make_envs(arcade, B), 9, seed)  # type: ignore[arg-type]
        return [game.seeds[0] for game in arcade.made]

    first = seeds(10)
    assert first == seeds(10)
    assert len(set(first)) == B + 6
    assert first[:B] == [10, 11, 12]
    assert not set(first[B:]) & set(seeds(11)[B:])
    assert seeds(None) == [None] * (B + 6)


def test_a_listener_hears_what_is_asked_of_whom() -> None:
    class Ear:
        heard: list[Any] = []  # noqa: RUF012

        def asked(self, env: int, action: Any) -> None:
            self.heard.append((env, None if action is None else int(action)))

    ear = Ear()
    always = {("step", 2): raises(BOOM)}
    envs = make_envs(Arcade({1: always}, always=always), B, listener=ear)
    assert ear.heard == [(1, None), (2, None)]  # each has its own time to be made in
    ear.heard.clear()
    envs.reset(0)
    assert ear.heard == [(0, None), (1, None), (2, None)]
    ear.heard.clear()
    for t in range(2):
        envs.step(np.array([0, 1, t]))
    assert ear.heard == [(0, 0), (1, 1), (2, 0), (0, 0), (1, 1), (1, None), (2, 1)]
    for _ in range(LENGTH - 2):
        envs.step(np.zeros(B, np.int64))
    ear.heard.clear()
    envs.step(np.ones(B, np.int64))  # games 0 and 2 begin anew
    assert ear.heard[0] == (0, None)
    assert ear.heard[-1] == (2, None)


# ---- snapshots ---------------------------------------------------------------------------------------------------


class Fragile(gymnasium.Env[Any, Any]):
    """Breaks by its own chance, so that its failures are the same from the same state on."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    broke = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.np_random.random() < 0.02:
            Fragile.broke += 1
            raise OSError("snap")
        return self.np_random.normal(size=1), 1.0, bool(self.np_random.random() < 0.05), False, {}


def test_an_exact_snapshot_holds_what_failures_leave_behind() -> None:
    Fragile.broke = 0
    check_exact(Fragile)
    assert Fragile.broke > 4

    ours, theirs = make_envs(Fragile, B), make_envs(Fragile, B)
    ours.reset(1)
    theirs.reset(2)
    for _ in range(60):
        ours.step(np.zeros(B, np.int64))
    theirs.restore(ours.snapshot())
    for t in range(60):
        one, other = (envs.step(np.zeros(B, np.int64)) for envs in (ours, theirs))
        same(one, other, slice(None))
        assert one.why == other.why, t
    assert ours.snapshot() == theirs.snapshot()


# ---- who steps them ----------------------------------------------------------------------------------------------


def model_of(envs: VectorEnv, **spec: Any) -> ActorCritic:
    torch.manual_seed(0)
    model = ActorCritic(envs.observation_space, envs.action_space, ModelSpec(hidden=(8,), **spec))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


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


@pytest.mark.parametrize("number", [1, 2])
def test_where_one_cannot_be_made_those_before_it_are_closed(number: int) -> None:
    arcade = Arcade({number: ValueError("no more of these")})
    with pytest.raises(EnvironmentUnsupported, match="no more of these"):
        make_envs(arcade, B)
    assert [game.closed for game in arcade.made[:number]] == [1] * number


def test_evaluation_plays_a_lost_game_again() -> None:
    arcade = Arcade({1: {("step", 4): raises(BOOM)}, 2: {("reset", 1): raises(BOOM)}})
    envs = make_envs(arcade, B)
    found = play(model_of(envs), envs, games=2 * B, deterministic=False, seed=0)
    assert found.scores == (LENGTH,) * 2 * B
    assert found.lengths == (LENGTH,) * 2 * B
    assert found.lost == 1
    assert "1 lost to failures and played again" in str(found)


def test_evaluation_ends_where_no_game_does() -> None:
    always = {("step", SOUND_AFTER + 20): raises(BOOM)}
    arcade = Arcade(dict.fromkeys(range(B), always), always=always, length=FOR_EVER)
    envs = make_envs(arcade, B)
    with pytest.raises(EnvironmentUnsupported, match=r"6 games were lost to failures; the last: environment 2 .*boom"):
        play(model_of(envs), envs, games=B, deterministic=False, seed=0)


def test_a_policy_with_memory_forgets_a_lost_game() -> None:
    """What it does after one is what it does in a first game that begins with the same observations."""
    arcade = Arcade({0: {("step", 3): raises(BOOM)}})
    envs = make_envs(arcade, B)
    model, firsts = model_of(envs, core="lstm"), list[list[bool]]()
    step = model.step

    def noted(observation: Any, state: Any, is_first: torch.Tensor, *rest: Any) -> Any:
        firsts.append(is_first.tolist())
        return step(observation, state, is_first, *rest)

    model.step = noted  # type: ignore[method-assign]
    play(model, envs, games=B, deterministic=False, seed=0)
    assert [t for t, first in enumerate(firsts) if first[0]] == [0, 3]


def test_inspection_tells_what_failed() -> None:
    arcade = Arcade({1: {("step", 4): pays(float("nan"))}})
    with pytest.raises(EnvironmentUnsupported) as caught:
        inspect(arcade, B)
    assert "environment 1 of Arcade returned the reward nan, which is not finite" in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "made anew" not in str(caught.value)


@pytest.mark.parametrize("env", ["CartPole-v1", "ALE/Pong-v5"])
def test_those_that_never_fail_lose_nothing(env: str) -> None:
    if env.startswith("ALE"):
        pytest.importorskip("ale_py.vector_env")
    with closing(make_envs(env, B)) as envs:
        found = steps(envs, 3)
    for step in found:
        assert step.why == ()
        assert step.lost.shape == (B,)
        assert not step.lost.any()
        with pytest.raises(ValueError, match="read-only"):
            step.lost[0] = True
