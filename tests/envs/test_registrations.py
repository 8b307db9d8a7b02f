"""Ids that a script has registered, in another process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import pytest

from polyactor.envs import make_envs
from polyactor.envs.registrations import register, registrations
from polyactor.errors import EnvironmentUnsupported


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def elsewhere(name: str) -> None:
    """As a new process has it."""
    sent = registrations()
    del gymnasium.registry[name]
    register(sent)


@pytest.mark.fault("P12")
def test_an_id_of_a_script_is_known_elsewhere() -> None:
    class Own(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, length: int) -> None:
            super().__init__(gymnasium.make("CartPole-v1", max_episode_steps=length))

    gymnasium.register("Own-v3", entry_point=Own, kwargs={"length": 7})
    elsewhere("Own-v3")
    with closing(make_envs("Own-v3", 2)) as envs:
        assert envs.reset(0).shape == (2, 4)
    assert gymnasium.registry["CartPole-v1"].entry_point == "gymnasium.envs.classic_control.cartpole:CartPoleEnv"


@pytest.mark.fault("P12")
def test_one_that_cannot_be_sent_says_so_when_it_is_made() -> None:
    lock = threading.Lock()
    gymnasium.register("Locked-v0", entry_point=lambda: lock and gymnasium.make("CartPole-v1"))
    elsewhere("Locked-v0")
    with pytest.raises(
        EnvironmentUnsupported, match=r"Locked-v0 cannot be sent to a process of its own .*pickle.*inline"
    ):
        make_envs("Locked-v0", 1)


def test_one_that_is_unknown_says_how_ids_of_ones_own_are_named() -> None:
    with pytest.raises(EnvironmentUnsupported, match=r"hand over its class .* name both: my_module:Nowhere-v0"):
        make_envs("Nowhere-v0", 1)
