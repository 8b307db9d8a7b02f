"""Emulators that can be saved and go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyactor.envs import AtariOptions, Step, VectorEnv, make_envs
from polyactor.envs.snapshot import snapshot
from polyactor.errors import CheckpointError
from tests.helpers.marks import mostly_slow

pytest.importorskip("ale_py.vector_env")


def play(envs: VectorEnv, steps: int, seed: int = 0) -> Iterator[tuple[np.ndarray, Step]]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        action = rng.integers(0, 4, envs.num_envs)
        yield action, envs.step(action)


SAVED: dict[str, Any] = {"atari": AtariOptions(frame_size=42), "saved": True}


def test_emulators_that_can_be_saved_show_the_same_games() -> None:
    """Without sticky actions and idle frames a game is its actions, whatever the seeds."""
    options = AtariOptions(frame_size=42, noop_max=1, sticky=0.0, life_loss=True)
    made = [make_envs("BreakoutNoFrameskip-v4", 2, atari=options, saved=saved) for saved in (False, True)]
    with closing(made[0]) as ours, closing(made[1]) as theirs:
        np.testing.assert_array_equal(ours.reset(1), theirs.reset(5))
        rng, ended = np.random.default_rng(0), 0
        for _ in range(400):
            action = rng.integers(0, 4, 2)
            one, other = ours.step(action), theirs.step(action)
            for mine, its in zip(one[:5], other[:5], strict=True):
                np.testing.assert_array_equal(mine, its)
                assert mine.dtype == its.dtype
            ended += int(one.done.sum())
        assert ended >= 2


@pytest.mark.parametrize("steps", mostly_slow([0, 30, 39, 40, 41], fast=[40]))
def test_saved_games_go_on(steps: int) -> None:
    """With idle frames and sticky actions, in the middle, at the end and at the start of a game."""
    ours, theirs = (make_envs("ALE/Pong-v5", 2, max_episode_steps=40, **SAVED) for _ in range(2))
    with closing(ours), closing(theirs):
        ours.reset(1)
        theirs.reset(2)
        for _, _step in play(ours, steps, seed=3):
            pass
        theirs.restore(ours.snapshot())
        for (_, one), (_, other) in zip(play(ours, 90, seed=4), play(theirs, 90, seed=4), strict=True):
            for mine, its in zip(one[:5], other[:5], strict=True):
                np.testing.assert_array_equal(mine, its)


def test_a_life_lost_before_is_not_lost_again() -> None:
    options = AtariOptions(frame_size=42, life_loss=True)
    ours, theirs = (make_envs("BreakoutNoFrameskip-v4", 1, atari=options, saved=True) for _ in range(2))
    with closing(ours), closing(theirs):
        ours.reset(1)
        theirs.reset(2)
        assert any(step.terminated[0] and not step.done[0] for _, step in play(ours, 400))
        theirs.restore(ours.snapshot())
        action = np.zeros(1, np.int64)
        one, other = ours.step(action), theirs.step(action)
        assert (one.terminated[0], other.terminated[0]) == (False, False)


def test_every_game_has_a_seed_of_its_own() -> None:
    with closing(make_envs("PongNoFrameskip-v4", 2, max_episode_steps=5, **SAVED)) as envs:
        envs.reset(1)
        seen = set()
        for _, _step in play(envs, 30):
            seen |= set(json.loads(envs.snapshot())[0]["seeds"]["list"])
        assert len(seen) == 2 * 6


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]}, {"seeds": [0, 1]}, {"seeds": [1, 2**31]}, {"over": np.zeros(3, bool)},
        {"played": [np.full(3, 99, np.uint8)] * 2},
    ],
)  # fmt: skip
def test_foreign_games_are_refused(change: dict[str, Any]) -> None:
    with closing(make_envs("PongNoFrameskip-v4", 2, **SAVED)) as envs:
        envs.reset(1)
        emulators: Any = envs._emulators  # type: ignore[attr-defined]
        kept = SimpleNamespace(lives=np.zeros(2), done=np.zeros(2, bool), **emulators.snapshot())
        vars(kept).update(change)
        with pytest.raises(CheckpointError, match="the saved games"):
            envs.restore(snapshot([kept]))
