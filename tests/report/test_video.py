"""A film shows one whole game, or there is none."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import polyactor as pa
from polyactor.config import EvaluateOptions
from polyactor.errors import EnvironmentUnsupported
from polyactor.report import video
from polyactor.report.video import Film, keepsakes, record
from tests.helpers.games import Endless, Games
from tests.helpers.policies import config_of, untrained
from tests.helpers.runs import Quiet, events, train

# imageio-ffmpeg leaves the pipes of a reader to the collector where ffmpeg has ended before it is closed.
pytestmark = pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning")


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


@pytest.mark.fault("P15")
def test_a_film_shows_every_step_of_one_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    policy = untrained(Painted)
    out = tmp_path / "film.mp4"
    assert record(policy.config, dict(policy.model.state_dict()), out, seed=0) == Film(12 * 10)
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
    assert record(policy.config, dict(policy.model.state_dict()), out, seed=0) == Film(12 * 10)
    assert ffmpeg.count_frames_and_secs(str(out))[0] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]

    taken = count(5)  # and nothing is left to show
    with pytest.raises(EnvironmentUnsupported, match=r"was not played to its end: .* the projector jammed"):
        record(policy.config, dict(policy.model.state_dict()), out, timeout=0.0)


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


@pytest.mark.fault("P17")
def test_a_picture_has_a_deadline(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    policy = untrained(SlowToDraw)
    config = replace(policy.config, env_timeout=0.1)
    with pytest.raises(EnvironmentUnsupported, match=r"SlowToDraw cannot draw itself: .* in a render"):
        record(config, dict(policy.model.state_dict()), tmp_path / "film.mp4", seed=0)


class Fatal(Painted):
    def render(self) -> Any:
        if self.steps:  # the first only fails, as MuJoCo's does without a display
            os.abort()
        raise RuntimeError("no display")


@pytest.mark.fault("S1")
def test_a_picture_that_ends_its_process_costs_the_film_and_not_the_run(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    run = train(tmp_path / "run", env=Fatal, steps=100)
    assert run.status == "done"
    (skipped,) = events(run.path, "video_skipped")
    assert skipped["reason"].startswith("Fatal cannot draw itself: its first picture ends the ")
    assert "by SIGABRT; " in skipped["reason"]
    assert "MUJOCO_GL=egl" in skipped["reason"]
    assert not (run.path / "replay.mp4").exists()


class Endlessly(Endless):
    """A continuing task that draws itself."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((16, 16, 3), self.steps % 256, np.uint8)


@pytest.mark.fault("S2")
def test_a_film_of_a_game_without_end_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    tensors, out = untrained(Endlessly).model.state_dict(), tmp_path / "film.mp4"
    short = replace(config_of(Endlessly), evaluate=EvaluateOptions(max_steps=7))
    assert record(short, tensors, out) == Film(7, "the game had not ended after 7 steps")
    assert ffmpeg.count_frames_and_secs(str(out))[0] == 7
    monkeypatch.setattr("polyactor.report.video.monotonic", count().__next__)  # a second a step
    found = record(config_of(Endlessly), tensors, out, timeout=40.0)
    assert found.cut.startswith("the game had not ended within 40 s, after ")
    assert ffmpeg.count_frames_and_secs(str(out))[0] == found.score == 41


@pytest.mark.parametrize(
    ("sizes", "seen"),
    [
        (((30, 48), (24, 48), (30, 30)), (330, 528)),
        (((1, 7), (9, 9)), (320, 1280)),
        (((2, 3000), (2, 3000)), (2, 3000)),
        (((210, 211), (210, 211)), (350, 360)),
    ],
)
def test_all_pictures_of_a_film_have_the_size_of_the_first(
    sizes: tuple[tuple[int, int], ...], seen: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(video, "MOST_PIXELS", 10_000)

    def changing(self: Painted) -> Any:
        height, width = sizes[self.steps % len(sizes)]
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : width // 2, 0], picture[:, width - width // 2 :, 2] = 255, 255
        return picture

    policy = untrained(Painted)
    monkeypatch.setattr(Painted, "render", changing)
    record(policy.config, dict(policy.model.state_dict()), tmp_path / "film.mp4")
    frames = ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    width, height = next(frames)["size"]
    assert (height, width) == seen
    for frame in islice(frames, 9):
        picture = np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        left, right = picture[:, : width // 3].mean((0, 1)), picture[:, -width // 3 :].mean((0, 1))
        assert left[0] > 200 > 60 > left[2]
        assert right[2] > 200 > 60 > right[0]
    frames.close()


class Odd(Quiet):
    """Draws what it is told to."""

    metadata: ClassVar[Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
    drawn: ClassVar[Any] = None

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return Odd.drawn() if callable(Odd.drawn) else Odd.drawn


@pytest.mark.fault("S1")
@pytest.mark.parametrize(
    ("drawn", "words"),
    [("text", "an object of type str"), (lambda: sys.exit(3), "SystemExit: 3"), ({}, "an object of type dict")],
)
def test_what_cannot_be_filmed_costs_the_film_and_not_the_run(
    drawn: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Odd, "drawn", drawn)
    run = train(tmp_path / "run", env=Odd, steps=100, quiet=False)
    assert run.status == "done"
    (skipped,) = events(run.path, "video_skipped")
    assert words in skipped["reason"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"curve, checkpoints and numbers are in {run.path}; no film: {skipped['reason']}"


@pytest.mark.fault("S1")
def test_metadata_that_are_none_cost_neither_the_run_nor_its_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "metadata", {"render_modes": None, "render_fps": "fast"})
    monkeypatch.setattr(Odd, "drawn", np.zeros((8, 8), np.uint8))
    run = train(tmp_path / "run", env=Odd, steps=100)
    assert run.status == "done"
    assert (run.path / "replay.mp4").exists()


@pytest.mark.fault("S1")
def test_a_curve_that_cannot_be_drawn_is_an_event(
    finished: pa.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*given: Any, **more: Any) -> Any:
        raise KeyError("DejaVu Sans")

    monkeypatch.setattr("polyactor.report.video.curve", fails)
    monkeypatch.setattr("polyactor.report.video.record", fails)
    found = dict(keepsakes(config_of("CartPole-v1"), finished.path, games=True))
    assert found == {"curve_skipped": "'DejaVu Sans'", "video_skipped": "'DejaVu Sans'"}


@pytest.mark.fault("S1")
def test_a_film_that_its_encoder_did_not_finish_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg")
    close = video._Encoder.close

    def dies(self: video._Encoder) -> None:
        close(self)
        if self.out.exists():
            os.truncate(self.out, 1_000)  # as a full disk leaves it

    monkeypatch.setattr(video._Encoder, "close", dies)
    policy = untrained(Painted)
    with pytest.raises(OSError, match="the encoder could not finish the film"):
        record(policy.config, dict(policy.model.state_dict()), tmp_path / "film.mp4", seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("S1", "P17")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the last flush of its pipe
@pytest.mark.parametrize("shape", [(33, 47, 3), (400, 400, 3)])
def test_an_encoder_that_takes_no_picture_or_does_not_end_costs_the_film(
    shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    policy, encoder, films = untrained(Painted), tmp_path / "encoder", tmp_path / "films"
    encoder.write_text("#!/bin/sh\nexec sleep 600\n")
    encoder.chmod(0o700)
    films.mkdir()
    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", lambda: str(encoder))
    monkeypatch.setattr(video, "ENCODED_WITHIN", 0.2)
    monkeypatch.setattr(Painted, "render", lambda self: np.zeros(shape, np.uint8))
    with pytest.raises(OSError, match=r"the encoder could not finish the film|Broken pipe"):
        record(policy.config, dict(policy.model.state_dict()), films / "film.mp4", seed=0)
    assert list(films.iterdir()) == []
