"""Whole games are played, and what never ends is cut."""

from __future__ import annotations

from collections import Counter as Stats
from dataclasses import replace
from itertools import count
from math import inf
from typing import Any

import pytest
import torch

from polyactor.agent.actor import Actor
from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.config import EvaluateOptions
from polyactor.envs import AtariOptions, make_envs
from polyactor.envs.serial_vector_env import SOUND_AFTER
from polyactor.errors import EnvironmentUnsupported
from polyactor.evaluation.evaluate import evaluate, limits, play
from tests.helpers.faulty_games import BOOM, FOR_EVER, LENGTH, Arcade, B, model_of, raises
from tests.helpers.games import Endless, Games
from tests.helpers.policies import config_of, untrained


class Standing(Endless):
    moves = False


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_environment_plays_the_same_number_of_whole_games(deterministic: bool) -> None:
    policy = untrained(Games)
    Games.made = count()
    envs = make_envs(Games, 4)
    found = play(policy.model, envs, games=10, deterministic=deterministic, seed=0)
    lengths = [env.number + 3 for env in envs._envs.envs]  # type: ignore[attr-defined]
    points = {length: length * (length - 2.0) for length in lengths}
    assert Stats(found.lengths) == dict.fromkeys(lengths, 3)  # ten games, made a multiple of four
    assert all(score == points[length] for score, length in zip(found.scores, found.lengths, strict=True))
    assert found.stuck == found.capped == 0
    assert found.deterministic is deterministic
    assert found.mean == pytest.approx(sum(points.values()) / 4)


def test_evaluation_plays_the_games_that_an_actor_plays_with_the_same_parameters() -> None:
    """So a difference between a training mean and a fresh one is in the parameters or in chance."""
    model, b, per_env = untrained("CartPole-v1").model, 4, 5
    found = play(model, make_envs("CartPole-v1", b), games=b * per_env, deterministic=False, seed=3)

    streams, games = Streams.of(3, EVALUATION_STREAM), []
    actor = Actor(
        make_envs("CartPole-v1", b),
        model,
        length=7,
        seed=streams.env,
        generator=streams.act,
        gamma=0.99,
        on_game=lambda score, length: games.append((score, length)),
    )
    while len(games) < 10 * b * per_env:
        actor.collect(0)
    taken = list(zip(found.scores, found.lengths, strict=True))
    assert len(taken) == b * per_env
    assert len(set(taken)) > 5  # games differ, so equality below means something
    # An environment that has played its share goes on, so the actor's list has more games between those taken.
    rest = iter(games)
    assert all(game in rest for game in taken)
    assert games[:b] == taken[:b]


def test_a_game_where_nothing_happens_is_cut_as_stuck() -> None:
    found = play(untrained(Standing).model, make_envs(Standing, 3), games=6, deterministic=True, seed=0, stuck_after=25)
    assert (found.stuck, found.capped) == (6, 0)
    assert found.lengths == (25,) * 6
    assert found.scores == (0.0,) * 6
    assert "6 stuck" in str(found)


def test_a_game_without_end_is_cut_at_the_cap_with_its_score_so_far() -> None:
    found = play(
        untrained(Endless).model,
        make_envs(Endless, 3),
        games=3,
        deterministic=True,
        seed=0,
        max_game_steps=40,
        stuck_after=10,
    )
    assert (found.stuck, found.capped) == (0, 3)
    assert found.lengths == (40, 40, 40)
    assert found.scores == (40.0, 40.0, 40.0)
    assert "3 cut at the step limit" in str(found)


def test_cut_games_are_played_again_after_a_reset_of_all() -> None:
    """Of two environments one plays games of 4 steps, the other would need 14 for one."""
    Games.made = count()
    envs = make_envs(Games, 2)
    for env, number in zip(envs._envs.envs, (1, 11), strict=True):  # type: ignore[attr-defined]
        env.number = number
    found = play(untrained(Games).model, envs, games=6, deterministic=True, seed=0, max_game_steps=6)
    assert Stats(found.lengths) == {4: 3, 6: 3}
    assert (found.capped, found.unplayed) == (3, 0)
    assert Stats(found.scores) == {8.0: 3, 72.0: 3}


@pytest.mark.fault("S2")
def test_an_evaluation_ends_when_its_time_is_over_with_the_games_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyactor.evaluation.evaluate.monotonic", count().__next__)  # a second a step
    Games.made, said = count(), list[str]()
    envs, model = make_envs(Games, 2), untrained(Games).model
    envs._envs.envs[1].number = 10**9  # type: ignore[attr-defined]
    found = play(model, envs, games=20, deterministic=False, seed=0, timeout=20, note=said.append)
    assert len(found.scores) + found.unplayed == 20
    assert set(found.lengths) == {envs._envs.envs[0].number + 3}  # type: ignore[attr-defined]
    assert f"{found.unplayed} not ended in time (--evaluate.timeout)" in str(found)
    assert said == [f"{n + 1} of 20 games" for n in range(len(found.scores))]

    none = play(model, make_envs(Endless, 2), games=3, deterministic=True, seed=0, timeout=20)
    assert (none.scores, none.unplayed) == ((), 4)
    assert str(none).startswith("greedy: no score, for no game has ended, 4 not ended in time (--evaluate.timeout)")


class Patient(Endless):
    """Nothing is seen to change for 2,100 steps; then the game is won."""

    moves = False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        x, _, _, _, info = super().step(action)
        over = self.steps == 2_100
        return x, float(over), over, False, info


@pytest.mark.fault("S2")
def test_a_long_wait_is_cut_only_by_a_flag() -> None:
    config, tensors = config_of(Patient), untrained(Patient).model.state_dict()
    found = evaluate(config, tensors, games=1)
    assert (found.scores, found.lengths, found.cuts) == ((1.0,), (2_100,), "")
    cut = evaluate(replace(config, evaluate=EvaluateOptions(stuck_after=50)), tensors, games=1)
    assert (cut.scores, cut.lengths, cut.stuck) == ((0.0,), (50,), 1)


@pytest.mark.fault("S2")
def test_games_are_cut_where_they_are_ataris_or_a_flag_says_so() -> None:
    assert limits(config_of(Endless)) == {"max_game_steps": inf, "stuck_after": inf}
    pong = replace(config_of("polyactor/Chain-v0"), env="PongNoFrameskip-v4")
    assert limits(pong) == {"max_game_steps": 27_000, "stuck_after": 2_000}
    assert limits(replace(pong, atari=AtariOptions(frame_skip=1)))["max_game_steps"] == 108_000
    assert limits(replace(pong, max_episode_steps=50_000))["max_game_steps"] == inf  # the environment has that limit
    flags = EvaluateOptions(max_steps=7, stuck_after=3)
    for config in (pong, config_of(Endless)):
        assert limits(replace(config, evaluate=flags)) == {"max_game_steps": 7, "stuck_after": 3}


@pytest.mark.fault("S3")
@pytest.mark.parametrize(("envs", "flag", "made"), [(2, None, 2), (1, None, 1), (4, 1, 1), (4, 0, 1), (2, 9, 9)])
def test_an_evaluation_makes_no_more_environments_than_a_worker_has(envs: int, flag: int | None, made: int) -> None:
    Games.made = count()
    tensors = untrained(Games).model.state_dict()
    before = next(Games.made)
    config = replace(config_of(Games), envs=envs, evaluate=EvaluateOptions(envs=flag))
    assert len(evaluate(config, tensors, games=10).scores) >= 10
    assert next(Games.made) - before - 1 == made


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

    def noted(observation: Any, state: Any, is_first: torch.Tensor, **named: Any) -> Any:
        firsts.append(is_first.tolist())
        return step(observation, state, is_first, **named)

    model.step = noted  # type: ignore[method-assign]
    play(model, envs, games=B, deterministic=False, seed=0)
    assert [t for t, first in enumerate(firsts) if first[0]] == [0, 3]
