"""What environments draw becomes RGB bytes, or a sentence says what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyactor.envs.pictures import draws, rate, rgb

SCENE = np.zeros((6, 8, 3), np.uint8)
SCENE[:, :4, 0], SCENE[:, 4:, 2] = 255, 255  # left red, right blue
GRAY = np.where(np.arange(8) < 4, 200, 50).astype(np.uint8) * np.ones((6, 1), np.uint8)


@pytest.mark.fault("S1")
@pytest.mark.parametrize(
    "drawn",
    [
        SCENE,
        np.concatenate([SCENE, np.full((6, 8, 1), 9, np.uint8)], 2),
        SCENE / 255.0,
        SCENE.astype(np.float32),
        SCENE.astype(np.int64),
        SCENE == 255,
        SCENE.transpose(2, 0, 1),
        [GRAY, SCENE],
        SCENE[None],
        SCENE.tolist(),
        torch.from_numpy(SCENE),
    ],
    ids=["bytes", "rgba", "unit", "floats", "int64", "bool", "chw", "list", "batch", "nested", "tensor"],
)
def test_pictures_of_many_kinds_show_the_scene(drawn: Any) -> None:
    found = rgb(drawn)
    assert found is not None
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, SCENE)


@pytest.mark.parametrize("drawn", [GRAY, GRAY[..., None], GRAY[None], GRAY / 255.0])
def test_gray_pictures_are_gray(drawn: Any) -> None:
    found = rgb(drawn)
    assert found is not None
    np.testing.assert_allclose(found, np.repeat(GRAY[..., None], 3, 2), atol=1)


@pytest.mark.fault("S1")
@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ("|..X.|", "an object of type str"),
        (object(), "an object of type object"),
        ([[1], [1, 2]], "an object of type list"),
        (np.zeros(5), r"numbers of shape \[5\]"),
        (np.zeros((6, 8, 5)), r"numbers of shape \[6, 8, 5\]"),
        (np.zeros((0, 8, 3)), r"numbers of shape \[0, 8, 3\]"),
        (SCENE.astype(int) + 1000, "numbers from 1000 to 1255"),
        (SCENE - 1.0, "numbers from -1 to 254"),
        (np.full((6, 8, 3), np.nan), "numbers from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(drawn: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^render\(\) returned {words}; a film needs pictures \[height, width, 3\]"):
        rgb(drawn)


def test_nothing_drawn_is_no_picture() -> None:
    assert rgb(None) is rgb([]) is None


@pytest.mark.fault("S1")
@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"render_fps": 12}, 12),
        ({"render_fps": 29.97}, 30),
        ({"render_fps": 0.2}, 1),
        ({"render_fps": 1e9}, 240),
        *[({"render_fps": odd}, 30) for odd in (0, -5, None, "fast", float("nan"), float("inf"), [30], object())],
        ({}, 30),
        (None, 30),
        (["render_fps"], 30),
    ],
)
def test_the_rate_of_a_film_is_a_number_whatever_the_metadata_are(metadata: Any, expected: int) -> None:
    assert rate(metadata) == expected


def test_what_metadata_say_of_drawing() -> None:
    assert draws({"render_modes": ["human", "rgb_array"]})
    assert not any(draws(odd) for odd in ({}, None, {"render_modes": None}, {"render_modes": 3}, {"render_modes": []}))
