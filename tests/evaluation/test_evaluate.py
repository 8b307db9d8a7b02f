"""Whole games are played, and what never ends is cut."""

from __future__ import annotations

from collections import Counter as Stats
from itertools import count
from typing import Any

import pytest
import torch

from polyactor.agent.actor import Actor
from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.envs import make_envs
from polyactor.envs.serial_vector_env import SOUND_AFTER
from polyactor.errors import EnvironmentUnsupported
from polyactor.evaluation.evaluate import play
from tests.helpers.faulty_games import BOOM, FOR_EVER, LENGTH, Arcade, B, model_of, raises
from tests.helpers.games import Endless, Games
from tests.helpers.policies import untrained


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
    assert (found.stuck, found.capped) == (3, 0)
    assert found.lengths == (25, 25, 25)
    assert found.scores == (0.0, 0.0, 0.0)
    assert "3 stuck" in str(found)


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
