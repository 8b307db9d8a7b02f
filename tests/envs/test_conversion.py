"""Actions and observations of every space, and spaces nobody can train in."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from polyactor.envs import env_spec, make_envs
from polyactor.envs.answers import Unsound
from polyactor.envs.conversion import MOST_CHOICES, MOST_NUMBERS, Conversion
from polyactor.errors import EnvironmentUnsupported

PAIR, TWO = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)
LARGE = float(np.finfo(np.float64).max)


class Plain(gymnasium.Env[Any, Any]):
    """Takes only actions of its space."""

    def __init__(self, observed: Any = PAIR, acted: Any = TWO, metadata: Any = None) -> None:
        self.observation_space, self.action_space = observed, acted
        if metadata is not None:
            self.metadata = metadata

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), repr(action)
        return self.observation_space.sample(), 1.0, False, False, {}


class Missions(spaces.Space[str]):
    """Texts in a class of their own, as MiniGrid has them."""

    def __init__(self) -> None:
        super().__init__(dtype=str)


def test_texts_are_left_out_also_where_their_class_is_another() -> None:
    observed = spaces.Dict(at=PAIR, mission=Missions(), said=spaces.Tuple([spaces.Text(3), TWO]))
    conversion = Conversion(observed, TWO, "Some")
    assert conversion.dropped == ("mission", "said.0")
    seen = conversion.encode({"at": np.ones(2, np.float32), "mission": "go", "said": ("no", 1)})
    assert seen.tolist() == [1, 1, 0, 1]


def test_parts_whose_keys_make_the_same_name_are_all_seen() -> None:
    image, other = (spaces.Box(0, 255, (24, side, 3), np.uint8) for side in (20, 30))
    observed = spaces.Dict(
        {"a.b": TWO, "a": spaces.Dict(b=spaces.Discrete(3), c=image), "a.c": other, "vector": image, "": other}
        | {"vector (image)": other, "said": spaces.Dict({"": spaces.Text(3)})}
    )
    value = observed.sample()
    value["a.b"], value["a"]["b"] = 1, 0
    seen = Conversion(observed, TWO, "Some").encode(value)
    assert seen["vector"].tolist() == [1, 0, 0, 0, 1]
    images = [seen[name] for name in seen.dtype.names if name != "vector"]
    wanted = [value["a"]["c"], *(value[name] for name in ("a.c", "vector", "vector (image)", ""))]
    assert sorted(map(np.ndarray.tobytes, images)) == sorted(map(np.ndarray.tobytes, wanted))


def test_a_mask_in_parts_is_no_part_of_what_is_seen() -> None:
    mask = spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary(3)])
    conversion = Conversion(spaces.Dict(action_mask=mask, at=PAIR), spaces.MultiDiscrete([2, 3]), "Some")
    assert conversion.masked
    assert conversion.observation_space == PAIR


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([2, 3], dtype=np.int32),
        spaces.MultiDiscrete([2, 3], dtype=np.uint8, start=[7, 9]),
        spaces.Discrete(4, dtype=np.uint8),
        spaces.Discrete(4, dtype=np.int16, start=-2),
        spaces.Discrete(3, start=2**40),
        spaces.Box(-1, 1, (2,), np.float16),
        spaces.Box(0.1, 0.3, (3,), np.float64),
        spaces.Box(-LARGE, LARGE, (2,), np.float64),
        spaces.Box(np.array([0, -np.inf], np.float32), np.array([np.inf, 0], np.float32)),
        spaces.Box(np.array([0, 1], np.float32), np.array([1, 1], np.float32)),
    ],
)
def test_every_action_lies_in_the_space_and_has_its_dtype(space: Any) -> None:
    conversion = Conversion(PAIR, space, "Some")
    conversion.action_space.seed(0)
    envs = make_envs(lambda: Plain(acted=space), 2)
    envs.reset(0)
    for _ in range(20):
        actions = np.stack([conversion.action_space.sample() for _ in range(2)])
        for row in conversion.decode(actions):
            assert row.dtype == space.dtype
            assert space.contains(row), repr(row)
        assert envs.step(actions).why == ()


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    ("space", "why"),
    [
        (spaces.Discrete(2**40), f"has 1,099,511,627,776 choices; a policy can have from 1 to {MOST_CHOICES:,}"),
        (spaces.MultiDiscrete([3, 2**31]), "has 2,147,483,651 choices"),
        (spaces.MultiDiscrete([]), "has 0 choices"),
        (spaces.Box(0, 1, (0,)), "needs a dimension"),
        (None, "which is none of Gymnasium's"),
        ("left, right", "which is none of Gymnasium's"),
    ],
)
def test_actions_nobody_can_choose_from(space: Any, why: str) -> None:
    with pytest.raises(EnvironmentUnsupported, match=why) as caught:
        env_spec(lambda: Plain(acted=space))
    assert "action space" in str(caught.value)


def with_nan() -> spaces.Box:
    box = spaces.Box(-1, 1, (2,), np.float32)
    box.low[0] = np.nan
    return box


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    ("space", "why"),
    [
        (spaces.Discrete(2**40), f"an observation can have from 1 to {MOST_NUMBERS:,}"),
        (spaces.Dict(), "makes 0 numbers"),
        (spaces.Tuple([]), "makes 0 numbers"),
        (spaces.Box(0, 1, (0,)), "makes 0 numbers"),
        (spaces.Dict(a=TWO, b=with_nan()), "not NaN"),
        (with_nan(), "not NaN"),
        (np.zeros(3), "which is none of Gymnasium's"),
        (spaces.Box, "which is none of Gymnasium's"),
    ],
)
def test_observations_nobody_can_read(space: Any, why: str) -> None:
    with pytest.raises(EnvironmentUnsupported, match=why) as caught:
        env_spec(lambda: Plain(observed=space))
    assert "observation space" in str(caught.value)


@pytest.mark.fault("D14")
def test_a_space_that_is_missing_or_raises() -> None:
    class Without(Plain):
        def __init__(self) -> None:
            self.observation_space = PAIR

    with pytest.raises(EnvironmentUnsupported, match="Without has no action space: "):
        env_spec(Without)

    class Raises(Plain):
        @property
        def observation_space(self) -> Any:
            raise RuntimeError("call reset first")

        @observation_space.setter
        def observation_space(self, space: Any) -> None:
            pass

    with pytest.raises(EnvironmentUnsupported, match="Raises has no observation space: call reset first"):
        env_spec(Raises)


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    "metadata",
    [{"render_fps": "fast"}, {"render_fps": None}, {"render_fps": 0}, {"render_fps": float("nan")}, [], "odd", 3,
     {"render_modes": None}, {"render_fps": float("inf"), "render_modes": 7}],
)  # fmt: skip
def test_odd_metadata_cost_nothing(metadata: Any) -> None:
    envs = make_envs(lambda: Plain(metadata=metadata), 1, render=True)
    assert envs.frames_per_second == 30
    assert env_spec(lambda: Plain(metadata={"render_fps": 12.0})).frames_per_second == 12


@pytest.mark.fault("D14")
def test_metadata_that_raise_cost_nothing() -> None:
    class Raises(Plain):
        @property
        def metadata(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no metadata")

    assert make_envs(Raises, 1, render=True).frames_per_second == 30


STRANGE = spaces.Dict(
    which=spaces.Discrete(3, start=1),
    two=spaces.MultiDiscrete([2, 3]),
    bits=spaces.MultiBinary(2),
    where=spaces.Box(0, 9, (2,), np.float32),
    shade=spaces.Box(0, 255, (1,), np.uint8),
    both=spaces.Tuple([spaces.Box(-9, 9, (1,), np.int32), spaces.MultiBinary((2, 3))]),
)
ONES = np.ones((2, 3), np.int8)
USUAL: dict[str, Any] = {
    "which": 1, "two": [1, 2], "bits": [0, 1], "where": [0.5, 2], "shade": np.uint8([7]), "both": ([3], ONES)
}  # fmt: skip


@pytest.mark.fault("D12")
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("which", 0),
        ("which", 4),
        ("which", 1.5),
        ("two", [1, 3]),
        ("two", [-1, 0]),
        ("two", [1, 2, 0]),
        ("bits", [0, 2]),
        ("where", ["1", "2"]),
        ("shade", [1.5]),
        ("shade", np.uint16([300])),
        ("shade", np.ma.MaskedArray(np.uint8([1]), [True])),
        ("where", [[0.5, 2]]),
        ("both", ([2**40], ONES)),
        ("both", ([3], ONES.T)),
        ("both", ([3], ONES, [4])),
        ("bits", np.ma.MaskedArray([1, 0], [True, False])),
        ("which", np.ma.MaskedArray([1], [True])),
    ],
)
def test_what_flattening_would_take_for_something_else_is_named(part: str, value: Any) -> None:
    conversion = Conversion(STRANGE, TWO, "Some")
    for usual in (USUAL, USUAL | {"which": np.array([1])}):
        np.testing.assert_array_equal(conversion.encode(usual), spaces.flatten(STRANGE, USUAL))
    with pytest.raises(Unsound, match=r"returned (the|an) observation .* where its space has"):
        conversion.encode(USUAL | {part: value})


@pytest.mark.fault("D12")
@pytest.mark.parametrize("resize", [(), (4, 6)])
def test_an_image_beside_others_holds_bytes_alone(resize: Any) -> None:
    space = spaces.Dict(image=spaces.Box(0, 255, (8, 9, 3), np.uint8), at=PAIR)
    conversion, usual = Conversion(space, TWO, "Some", resize), {"at": np.zeros(2, np.float32)}
    assert (conversion.encode(usual | {"image": np.full((8, 9, 3), 200, np.uint16)})["image"] == 200).all()
    for image in (np.full((8, 9, 3), 300, np.uint16), np.ones((9, 8, 3), np.uint8), np.ma.masked_all((8, 9, 3), "u1")):
        with pytest.raises(Unsound, match=r"returned (the|an) observation .* where its space has"):
            conversion.encode(usual | {"image": image})


def test_parts_that_flattening_hides() -> None:
    space = spaces.Dict(image=spaces.Box(0, 255, (7, 7, 3), np.uint8), at=spaces.Tuple([PAIR, spaces.Discrete(4)]))
    spec = env_spec(lambda: Plain(observed=space))
    assert list(spec.entries) == ["image", "vector"]
    assert spec.hidden == ()
    floats = spaces.Dict(image=spaces.Box(0, 1, (7, 7, 3), np.float32), at=PAIR)
    assert env_spec(lambda: Plain(observed=floats)).hidden == ((7, 7, 3),)
    assert env_spec(lambda: Plain(observed=spaces.Box(0, 255, (7, 7, 3), np.uint8))).hidden == ()
    assert env_spec("CartPole-v1").hidden == ()
