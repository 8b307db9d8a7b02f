"""An environment is inspected before a run."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from polyactor.envs.check import inspect
from polyactor.errors import EnvironmentUnsupported
from tests.helpers.faulty_games import Arcade, B, pays


def test_inspection_tells_what_failed() -> None:
    arcade = Arcade({1: {("step", 4): pays(float("nan"))}})
    with pytest.raises(EnvironmentUnsupported) as caught:
        inspect(arcade, B)
    assert "environment 1 of Arcade returned the reward nan, which is not finite" in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "made anew" not in str(caught.value)


def test_an_inspection_closes_what_it_has_made() -> None:
    arcade = Arcade()
    inspect(arcade, B)
    assert [game.closed for game in arcade.made] == [1] * B


@pytest.mark.fault("D17")
def test_inspection_tells_of_a_number_that_would_blind_a_policy_for_the_others() -> None:
    """Such as a time in seconds since 1970."""

    def stamped() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make("CartPole-v1")
        space = gymnasium.spaces.Box(-np.inf, np.inf, (5,))
        return gymnasium.wrappers.TransformObservation(env, lambda x: np.array([*x, 1.7e9], np.float32), space)

    assert "float32 [5], up to 1.7e+09 in size; --normalize.observation scales them" in inspect(stamped)
    assert "scales" not in inspect("CartPole-v1")
