"""Action masks: their forms, what is refused, and what is legal in states that nobody acts in."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyactor.envs import draw, env_spec, make_envs
from polyactor.envs.action_masks import ActionMasks
from polyactor.envs.answers import Unsound
from polyactor.errors import EnvironmentUnsupported
from tests.helpers.toys import Everything, Masked

MIXED = spaces.Dict(
    {"a": spaces.Discrete(2), "b": spaces.MultiDiscrete([2, 3]), "c": spaces.Box(-1, 1, (2,), np.float32)}
)
"""An action space with the choices of a (2), of b (2 and 3), and numbers."""


@pytest.mark.parametrize(
    ("acted", "raw", "wanted"),
    [
        (spaces.Discrete(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Discrete(3, start=4), [True, False, True], [1, 0, 1]),
        (spaces.Discrete(2), np.array([0.0, 1.0]), [0, 1]),
        (spaces.MultiDiscrete([2, 3]), (np.array([0, 1]), np.array([1, 1, 0])), [0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), [[0, 1], (1, 1, 0)], [0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), (torch.tensor([0, 1]), torch.tensor([1, 1, 0])), [0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 2]), np.array([[0, 1], [1, 0]]), [0, 1, 1, 0]),
        (spaces.MultiDiscrete([[2, 3], [1, 2]]), [[[0, 1], [1, 1, 0]], [[1], [1, 0]]], [0, 1, 1, 1, 0, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), ([0, 1], None), [0, 1, 1, 1, 1]),
        (spaces.MultiBinary(2), np.array([1, 0, 1, 1]), [1, 0, 1, 1]),
        (MIXED, {"a": np.array([0, 1]), "c": None}, [0, 1, 1, 1, 1, 1, 1]),
        (MIXED, {"b": [[0, 1], [1, 1, 0]]}, [1, 1, 0, 1, 1, 1, 0]),
        (MIXED, [0, 1, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1, 0]),
        (MIXED, {"b": (np.array([0, 1]), np.array([1, 1, 0]))}, [1, 1, 0, 1, 1, 1, 0]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]), ([0, 1], [1, 0]), [0, 1, 1, 0]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1)]), [0, 1], [0, 1]),
        (spaces.Discrete(3), [torch.tensor(1), torch.tensor(0), torch.tensor(1)], [1, 0, 1]),
    ],
)
def test_every_form_of_a_mask(acted: Any, raw: Any, wanted: Any) -> None:
    assert ActionMasks(acted).parsed(raw, acted_on=True).tolist() == [bool(each) for each in wanted]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.ones(4), "an action mask of 4 numbers where its actions have 5 choices"),
        (np.zeros(5), "without a legal action, though its game goes on"),
        (np.array([1, 1, 0, 0, 0]), "without a legal action, though its game goes on"),
        (np.array([1, 1, 0.5, 0, 0]), "which has other numbers than 0 and 1"),
        (np.array([1, 1, np.nan, 0, 0]), "which has other numbers than 0 and 1"),
        (np.array([1, 1, 2, 0, 0]), "which has other numbers than 0 and 1"),
        ("legal", "an action mask of 1 numbers"),
        ([[1, 1, 0], [0, 1], []], r"the action mask \[\[1, 1, 0\], \[0, 1\], \[\]\], of 3 parts for 2 of its actions"),
        (
            np.ma.MaskedArray([1, 0, 1, 1, 1], [0, 1, 0, 0, 0]),
            r"the action mask \[1 -- 1 1 1\], of which numbers are m",
        ),
        (([0, 1], np.ma.MaskedArray([1, 1, 1], [0, 1, 0])), "of which numbers are masked"),
        ((np.ones(3), np.ones(2)), "an action mask of 3 numbers for a part of its actions with 2 choices"),
    ],
)
def test_what_is_no_mask(raw: Any, words: str) -> None:
    with pytest.raises(Unsound, match=words):
        ActionMasks(spaces.MultiDiscrete([2, 3])).parsed(raw, acted_on=True)


def test_a_mask_for_a_part_that_actions_lack_is_refused() -> None:
    """It was to forbid something."""
    with pytest.raises(Unsound, match="gave an action mask for 'A', which its actions do not have"):
        ActionMasks(MIXED).parsed({"A": np.array([0, 1])}, acted_on=True)


def test_a_mask_of_the_right_size_in_all_whose_parts_have_others_is_refused() -> None:
    with pytest.raises(Unsound, match="mask of 3 numbers for a part of its actions with 2 choices"):
        ActionMasks(MIXED).parsed({"a": np.ones(3), "b": np.ones(4)}, acted_on=True)


def test_where_nobody_acts_all_is_legal_if_nothing_is() -> None:
    masks = ActionMasks(spaces.MultiDiscrete([2, 3]))
    assert masks.parsed(np.zeros(5), acted_on=False).all()
    assert masks.parsed(np.array([1, 0, 0, 1, 0]), acted_on=False).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("told", ["info", "observation", "method"])
def test_masks_come_with_each_observation(told: str) -> None:
    assert env_spec(lambda: Masked(told)).masked
    assert env_spec(lambda: Masked(told)).observation_space.shape == (1, 10) if told != "observation" else (10,)
    envs, rng = make_envs(lambda: Masked(told), 3), np.random.default_rng(0)
    seen = envs.reset(0)
    for _ in range(50):
        assert envs.action_mask is not None
        legal = seen.reshape(3, 10)[:, :5] == 1
        over = ~(envs.action_mask == legal).all(1)
        assert envs.action_mask[over].all(), "all is legal where a game is over"
        step = envs.step(draw(envs.action_space, 3, rng, envs.action_mask))
        assert not step.why
        seen = step.observation
    envs.close()


class Unlike(gymnasium.Env[Any, Any]):
    """Gives a mask first, and then one that is wrong."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, later: Any) -> None:
        self.later = later

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {"action_mask": np.array([0, 1])}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, self.later


@pytest.mark.parametrize(
    ("later", "words"),
    [
        ({"action_mask": np.zeros(2)}, "gave an action mask without a legal action, though its game goes on"),
        ({"action_mask": np.ones(3)}, "gave an action mask of 3 numbers where its actions have 2 choices"),
        ({}, "gave no action_mask, though the first reset did"),
        (None, "gave no action_mask, though the first reset did"),
    ],
)
def test_a_wrong_mask_costs_the_environment_its_game(later: Any, words: str) -> None:
    envs = make_envs(lambda: Unlike(later), 2)
    envs.reset(0)
    step = envs.step(np.array([1, 1]))
    assert step.lost.all()
    assert words in step.why[0]
    assert envs.action_mask is not None
    assert envs.action_mask.tolist() == [[False, True]] * 2  # of the new games


@pytest.mark.parametrize("first", ["step 1", "step 3", "reset 2", "reset 3"])
def test_a_mask_that_comes_late_is_refused_and_not_ignored(first: str) -> None:
    """Two resets are the first ones of two environments; a game has two steps."""
    calls = {"reset": 0, "step": 0}

    def info(call: str) -> dict[str, Any]:
        calls[call] += 1
        return {"action_mask": np.array([0, 1])} if f"{call} {calls[call]}" == first else {}

    class Late(Unlike):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.steps = 0
            return np.zeros(2, np.float32), info("reset")

        def step(self, action: Any) -> Any:
            self.steps += 1
            return np.zeros(2, np.float32), 1.0, self.steps == 2, False, info("step")

    def play() -> None:
        with closing(make_envs(lambda: Late(None), 2)) as envs:
            envs.reset(0)
            for _ in range(3):
                envs.step(np.zeros(2, np.int64))

    where = "step" if first.startswith("step") else "a later reset"
    with pytest.raises(EnvironmentUnsupported, match=f"gives an action_mask in {where}, but none in its first reset: "):
        play()


@pytest.mark.parametrize("told", ["info", "method"])
def test_a_first_mask_that_is_none_is_called_so(told: str) -> None:
    class Nothing(Unlike):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(2, np.float32), {"action_mask": None} if told == "info" else {}

    if told == "method":
        Nothing.action_masks = lambda self: None  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentUnsupported, match="the last time it gave None as action_mask in reset at step 0"):
        make_envs(lambda: Nothing(None), 1).reset(0)


def test_a_mask_in_pieces_for_a_single_choice_is_refused() -> None:
    with pytest.raises(Unsound, match=r"the action mask \[\[1, 1\], \[0\]\], of 2 parts for 1 of its actions"):
        ActionMasks(spaces.Discrete(3)).parsed([[1, 1], [0]], acted_on=True)


def test_actions_are_drawn_from_the_legal_ones() -> None:
    rng, space = np.random.default_rng(0), spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,))])
    legal = np.array([[1, 0, 0, 1, 1], [1, 1, 0, 0, 1]], bool)
    drawn = np.stack([draw(space, 2, rng, legal) for _ in range(200)])
    assert drawn.shape == (200, 2, 4)
    assert set(drawn[:, 0, 0]) == {0.0}
    assert set(drawn[:, 0, 1]) == {1.0, 2.0}
    assert set(drawn[:, 1, 0]) == {0.0, 1.0}
    assert set(drawn[:, 1, 1]) == {2.0}
    assert np.abs(drawn[..., 2:]).max() <= 1
    assert draw(spaces.Discrete(3), 4, rng).shape == (4,)
    assert draw(spaces.Box(-1, 1, (2,)), 4, rng).shape == (4, 2)


def test_a_failure_after_an_action_of_several_parts_is_told() -> None:
    """Their shapes differ, so they are no array."""
    envs = make_envs(lambda: Everything(failing=1.0), 2)
    envs.reset(0)
    step = envs.step(draw(envs.action_space, 2, np.random.default_rng(0), envs.action_mask))
    assert step.lost.all()
    assert "raised OSError: the camera is gone at step 1, after the action (array([" in step.why[0]
    envs.close()
