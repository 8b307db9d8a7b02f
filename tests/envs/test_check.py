"""An environment is inspected before a run."""

from __future__ import annotations

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
