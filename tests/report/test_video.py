"""A film shows one whole game, or there is none."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyactor.errors import EnvironmentUnsupported
from polyactor.report.video import record
from tests.helpers.games import Endless, Games
from tests.helpers.policies import untrained


class Painted(Games):
    """Games of 12 steps with pictures of an odd size."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.number, self.render_mode = 9, render_mode

    def render(self) -> Any:
        picture = np.zeros((33, 47, 3), np.uint8)
        picture[: self.steps * 2] = 200
        return picture


@pytest.mark.fault("P21")
def test_a_film_shows_every_step_of_one_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    policy = untrained(Painted)
    out = tmp_path / "film.mp4"
    score = record(policy.config, dict(policy.model.state_dict()), out, seed=0)
    assert score == 12 * 10
    frames, seconds = ffmpeg.count_frames_and_secs(str(out))
    assert frames == 12
    assert seconds == pytest.approx(1.2, abs=0.15)
    picture = ffmpeg.read_frames(str(out))
    width, height = next(picture)["size"]
    picture.close()
    assert width % 2 == height % 2 == 0
    assert min(width, height) >= 320
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert "SDL_VIDEODRIVER" not in os.environ


def test_a_film_begins_anew_where_a_game_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    step, taken = Painted.step, count(1)

    def breaks(self: Painted, action: Any) -> Any:
        if next(taken) == 5:
            raise RuntimeError("the projector jammed")
        return step(self, action)

    policy = untrained(Painted)
    monkeypatch.setattr(Painted, "step", breaks)
    out = tmp_path / "film.mp4"
    score = record(policy.config, dict(policy.model.state_dict()), out, seed=0)
    assert score == 12 * 10
    assert ffmpeg.count_frames_and_secs(str(out))[0] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]

    taken = count(4)
    monkeypatch.setattr("polyactor.report.video.MAX_GAME_STEPS", 2)  # and nothing is left to show
    with pytest.raises(EnvironmentUnsupported, match=r"was played to its end: .* the projector jammed"):
        record(policy.config, dict(policy.model.state_dict()), out)


def test_what_cannot_be_drawn_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = untrained(Endless)
    with pytest.raises(EnvironmentUnsupported, match="draws no pictures"):
        record(policy.config, dict(policy.model.state_dict()), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())

    def blind(self: Painted) -> Any:
        if self.steps == 5:
            raise RuntimeError("the paint ran out")
        return np.zeros((32, 32, 3), np.uint8)

    policy = untrained(Painted)
    monkeypatch.setattr(Painted, "render", blind)
    with pytest.raises(EnvironmentUnsupported, match="the paint ran out"):
        record(policy.config, dict(policy.model.state_dict()), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


class SlowToDraw(Painted):
    def render(self) -> Any:
        time.sleep(100)


@pytest.mark.fault("P23")
def test_a_picture_has_a_deadline(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    policy = untrained(SlowToDraw)
    config = replace(policy.config, env_timeout=0.1)
    with pytest.raises(EnvironmentUnsupported, match=r"SlowToDraw cannot draw itself: .* in a render"):
        record(config, dict(policy.model.state_dict()), tmp_path / "film.mp4", seed=0)
