"""Environments that go on from what was saved of others, and those that are refused."""

from __future__ import annotations

import base64
import json
import random
from collections import deque
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from polyactor.envs import check_exact, make_envs
from polyactor.envs.snapshot import restore, snapshot
from polyactor.errors import CheckpointError, EnvironmentUnsupported


class Walk(gymnasium.Env[Any, Any]):
    """A random walk whose stream is chosen by who derives from it."""

    observation_space: ClassVar[Any] = Box(-np.inf, np.inf, (2,), np.float32)
    action_space: ClassVar[Any] = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = np.zeros(2, np.float32), 0
        self.past: deque[float] = deque(maxlen=3)
        return self.place.copy(), {}

    def noise(self) -> float:
        return float(self.np_random.normal())

    def step(self, action: Any) -> Any:
        self.past.append(self.noise())
        self.place += np.float32([sum(self.past), action])
        self.steps += 1
        return self.place.copy(), float(self.place[0]), False, self.steps == 7, {}


class OfNumpy(Walk):
    """One that Gymnasium's seed never reaches."""

    def noise(self) -> float:
        return float(np.random.normal())


class OfAFunction(Walk):
    """One in a closure, where no attribute shows it."""

    def __init__(self) -> None:
        rng = np.random.default_rng()
        self.draw = lambda: float(rng.normal())

    def noise(self) -> float:
        return self.draw()


class OfAnObject(Walk):
    """One in an object of somebody's own."""

    def __init__(self) -> None:
        self.opponent = SimpleNamespace(mood=0.0)

    def noise(self) -> float:
        self.opponent.mood += 1.0
        return float(self.opponent.mood)


class OfOldKinds(Walk):
    """Two of the kinds before `np.random.Generator`, and one that two attributes share."""

    def __init__(self) -> None:
        self.legacy, self.python = np.random.RandomState(), random.Random()
        self.shared = self.also = np.random.Generator(np.random.Philox())

    def noise(self) -> float:
        return float(self.legacy.normal()) + self.python.random() + self.shared.random() - 2 * self.also.random()


class OfItsSpace(Walk):
    """The action space's."""

    def __init__(self) -> None:
        self.action_space = Discrete(5)

    def noise(self) -> float:
        return float(self.action_space.sample())


class Phase(Enum):
    FIRST, SECOND = 1, 2


class OfAPhase(Walk):
    """One whose use depends on members of an Enum, alone and in a list."""

    def __init__(self) -> None:
        self.phase, self.phases = Phase.FIRST, [Phase.SECOND]

    def noise(self) -> float:
        self.phases.append(self.phase)
        self.phase = self.phases.pop(0) if self.np_random.random() < 0.1 else self.phase
        return float(self.np_random.normal()) * self.phase.value


class OfAnInnerOne(Walk):
    """One in an attribute with the name that wrappers have for what they are around."""

    def __init__(self) -> None:
        self.env = SimpleNamespace(mood=0.0)


class OfAMethodOfAnother(Walk):
    """One of a method whose object is another one after it was saved."""

    def __init__(self) -> None:
        self.place_of = deque[float](maxlen=3)
        self.keep = self.place_of.append


CAN = [
    "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "FrozenLake-v1",
    "CliffWalking-v1", "Blackjack-v1", "polyactor/Catch-v0", "polyactor/TMaze-v0", "polyactor/LQR-v0", Walk, OfOldKinds,
    OfAPhase,
]  # fmt: skip


@pytest.mark.parametrize("env", CAN)
def test_goes_on_to_the_bit(env: Any) -> None:
    check_exact(env)


@pytest.mark.parametrize(
    ("env", "why"),
    [
        (OfNumpy, "OfNumpy draws from the global random streams of numpy.random, which are not saved"),
        (OfAFunction, "OfAFunction.* does not go on"),
        (OfItsSpace, "OfItsSpace.* does not go on"),
        (OfAnObject, "OfAnObject cannot be saved: OfAnObject.opponent is a types.SimpleNamespace"),
        (OfAnInnerOne, "OfAnInnerOne cannot be saved: OfAnInnerOne.env is a types.SimpleNamespace"),
        (OfAMethodOfAnother, r"OfAMethodOfAnother\.keep is a method of a collections\.deque, which cannot be saved"),
    ],
)
def test_what_cannot_go_on_is_refused(env: Any, why: str) -> None:
    with pytest.raises(EnvironmentUnsupported, match=why):
        check_exact(env)


def numbers(n: int) -> Any:
    return lambda: n


@pytest.mark.parametrize(
    ("one", "other"), [(Walk.noise, OfNumpy.noise), (Walk, OfNumpy), (json, random), (numbers(1), numbers(2))]
)
def test_a_reference_that_has_changed_is_refused(one: Any, other: Any) -> None:
    """It is not saved, and a new environment has the first one."""
    there, same = SimpleNamespace(chosen=one), SimpleNamespace(chosen=one)
    restore([there], snapshot([same]))
    assert there.chosen is one
    with pytest.raises(CheckpointError, match=r"SimpleNamespace\.chosen is .* and was "):
        restore([there], snapshot([SimpleNamespace(chosen=other)]))


def test_a_method_that_has_changed_is_refused_before_a_run() -> None:
    class Choosing(Walk):
        def __init__(self) -> None:
            self.chosen, self.asked = self.noise, 0

        def step(self, action: Any) -> Any:
            self.asked += 1
            if self.asked == 60:
                self.chosen = self.other
            return super().step(action)

        def other(self) -> float:
            return 0.0

    with pytest.raises(EnvironmentUnsupported, match=r"Choosing cannot be saved: .*Choosing\.chosen is .* and was "):
        check_exact(Choosing)


def test_a_member_that_no_module_has_is_refused() -> None:
    local = Enum("local", ["A"])
    with pytest.raises(EnvironmentUnsupported, match=r"SimpleNamespace\.a is a member of local, which no module has"):
        snapshot([SimpleNamespace(a=local.A)])


def test_physics_is_refused() -> None:
    pytest.importorskip("Box2D")
    with pytest.raises(EnvironmentUnsupported, match=r"LunarLander-v3 cannot be saved: LunarLander\.world is a Box2D"):
        check_exact("LunarLander-v3")


def test_a_wrapper_and_the_end_of_a_game_are_saved_too() -> None:
    """Three steps before the limit, and in the step after a game's end, whose answer is a first observation."""
    for steps in (4, 7):
        ours, theirs = make_envs(Walk, 2, max_episode_steps=7), make_envs(Walk, 2, max_episode_steps=7)
        ours.reset(0)
        theirs.reset(9)
        for _ in range(steps):
            ours.step(np.zeros(2, np.int64))
        theirs.restore(ours.snapshot())
        for _ in range(9):
            for one, other in zip(ours.step(np.ones(2)), theirs.step(np.ones(2)), strict=True):
                np.testing.assert_array_equal(one, other)


def test_every_plain_value_comes_back() -> None:
    values: dict[str, Any] = {
        "nothing": None, "yes": True, "count": 2**80, "big": 1e308, "worst": float("-inf"), "text": "ä\n",
        "scalar": np.float32(0.1), "letter": np.str_("a"), "array": np.arange(6, dtype=">i2").reshape(2, 3),
        "none": np.zeros((0, 3)), "point": np.array(2.5), "list": [1, [2.5, None]], "tuple": (1, ("a",)),
        "set": {1, 2}, "dict": {(0, "a"): [True], 3: {}}, "deque": deque([1, 2], maxlen=2),
    }  # fmt: skip
    there = SimpleNamespace()
    restore([there], snapshot([SimpleNamespace(**values)]))
    assert vars(there).keys() == values.keys()
    for name, value in values.items():
        back = getattr(there, name)
        assert type(back) is type(value), name
        assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value, name
    assert there.array.dtype == values["array"].dtype
    assert there.deque.maxlen == 2
    there.array[0] = 0  # writable, as it was


def test_what_was_one_object_stays_one() -> None:
    buffer = np.zeros(2)
    there = SimpleNamespace()
    restore([there], snapshot([SimpleNamespace(a=buffer, b=[buffer], c=np.zeros(2))]))
    assert there.a is there.b[0]
    assert there.a is not there.c


def test_a_value_inside_itself_is_refused() -> None:
    inside: list[Any] = []
    inside.append(inside)
    with pytest.raises(CheckpointError, match="inside itself"):
        restore([SimpleNamespace()], snapshot([SimpleNamespace(inside=inside)]))


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(EnvironmentUnsupported, match=r"SimpleNamespace\.a is an array of Python objects"):
        snapshot([SimpleNamespace(a=np.array([object()]))])


@pytest.mark.parametrize(
    "saved",
    [
        b"", b"\xff", b"[]", b"{}", b"[1]", b'[{"a": [1]}]', b'[{"__class__": 1}]', b'[{"a": {"same": 5}}]',
        b'[{"a": {"module": "os"}}]', b'[{"a": {"generator": {"dict": [["bit_generator", "os.system"]]}}}]',
        b'[{"a": {"array": ["|O", [1], "AAAAAAAAAAA="]}}]', b'[{"a": {"array": ["<f8", [9], ""]}}]',
        b'[{"a": {"array": ["<f8", [1], "!"]}}]', b'[{"a": {"set": [{"list": []}]}}]', b"[" * 100_000,
        b'[{"a": {}}]', b'[{"a": {"enum": ["os", "system", "a"]}}]', b'[{"a": {"named": "os.system"}}]',
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_sentence(saved: bytes) -> None:
    there = SimpleNamespace(a=0)
    with pytest.raises(CheckpointError, match="none of theirs"):
        restore([there], saved)
    assert vars(there) == {"a": 0}


def test_nothing_is_pickled() -> None:
    state = json.loads(snapshot([SimpleNamespace(a=np.arange(3, dtype=np.uint8))]))
    assert state == [{"a": {"array": ["|u1", [3], base64.b64encode(bytes(range(3))).decode()]}}]
