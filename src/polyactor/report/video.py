"""Videos: one game of a policy as an mp4, and the video and learning curve of a finished run."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.config import Config
from polyactor.data import leaves, map_tree
from polyactor.envs import EnvSpec, is_atari, make_envs, name_of
from polyactor.envs.answers import FAILURES
from polyactor.errors import EnvironmentUnsupported, one_line
from polyactor.evaluation.evaluate import fresh_envs, limits
from polyactor.evaluation.policy import make_trained, parameters
from polyactor.report.curves import curve
from polyactor.shared.counters import never
from polyactor.system.child_processes import end_noted, noting
from polyactor.system.deadline import Unanswered
from polyactor.system.machine import torch_threads
from polyactor.system.notices import Doing, Say, unsaid
from polyactor.system.process_state import environment_variables
from polyactor.system.trial import fate

MIN_SIZE, MAX_SIZE = 320, 4096
"""Least height of a video, and most width of an enlarged one, in pixels; small frames are enlarged by a whole factor,
so that players show them sharp."""
BLANK_STEPS = 10
"""Steps of a game after which an environment that has not drawn a picture is taken to draw none."""
FILM_WITHIN, ENDLESS_WITHIN = 20.0, 5.0
"""Seconds after which the film of a finished run ends, whether or not its game has: the latter if no game of it has."""

TRIED_WITHIN = 5.0
"""Seconds that an environment may draw its first picture for in a process of its own."""
MOST_PIXELS = 2048**2
"""Most pixels of a picture that is encoded whole; of a larger one every second row and column is, or every third, …"""
ENCODED_WITHIN = 20.0
"""Seconds within which an encoder takes a picture, and finishes the video; then it is killed."""
FINISHED_WITHIN = 30.0
"""Seconds within which the first picture of a finished video can be read."""


class _Encoder:
    """Writes pictures as an H.264 video; the first one decides the size, and the others are scaled to it.

    Args:
        out: the mp4 to write.
        rate: pictures per second.
    """

    def __init__(self, out: Path, rate: int) -> None:
        self.out, self.rate = out, rate
        self.size: tuple[int, int] | None = None
        self.frames: Any = None
        self.begun: set[int] = set()
        """The encoder's process, where it is known."""

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Append an RGB picture ``[H, W, 3]``."""
        if self.size is None:
            every = math.ceil(math.sqrt(picture.shape[0] * picture.shape[1] / MOST_PIXELS))
            self.size = height, width = -(-picture.shape[0] // every), -(-picture.shape[1] // every)
            even = height + height % 2, width + width % 2  # H.264 wants even sizes
            factor = max(1, min(-(-MIN_SIZE // even[0]), MAX_SIZE // even[1]))
            self.frames = _encoder().write_frames(
                str(self.out),
                even[::-1],
                fps=self.rate,
                codec="libx264",
                macro_block_size=2,
                output_params=["-vf", f"scale={even[1] * factor}:{even[0] * factor}:flags=neighbor"],
            )
            with noting(self.begun):
                self.frames.send(None)
        height, width = self.size
        if picture.shape[:2] != self.size:
            rows, columns = (np.arange(n) * found // n for n, found in zip(self.size, picture.shape[:2], strict=True))
            picture = picture[rows][:, columns]
        with self._bounded():
            self.frames.send(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").tobytes())

    def close(self) -> None:
        """Finish the file."""
        if self.frames is not None:
            with self._bounded():
                self.frames.close()
        self.size = self.frames = None

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """End the encoder where what is done in the with block, which waits for it, takes too long."""
        timer = threading.Timer(ENCODED_WITHIN, end_noted, [self.begun])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _encoder() -> Any:
    """Return the module of the encoder. Raises `EnvironmentUnsupported` where it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise EnvironmentUnsupported('a video needs an encoder: pip install "polyactor[video]"') from None
    return imageio_ffmpeg


def _refuse_unfinished(film: Path) -> None:
    """Raise `OSError` for a file that is no film, since an encoder that dies as it finishes one says so to nobody."""
    command = [_encoder().get_ffmpeg_exe(), "-i", str(film), "-frames:v", "1", "-f", "null", "-"]
    try:  # to read one picture takes what an encoder writes last
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=FINISHED_WITHIN)
    except subprocess.SubprocessError:
        raise OSError("the encoder could not finish the film, as on a full disk") from None


@dataclass(frozen=True)
class Film:
    """A video that was written.

    Attributes:
        score: the score of the game, or of the part of it that is shown.
        cut: why the game is not shown to its end; empty if it is.
    """

    score: float
    cut: str = ""


@torch.inference_mode()
def record(
    config: Config,
    tensors: Mapping[str, Tensor],
    out: Path,
    *,
    deterministic: bool = False,
    seed: int = 0,
    timeout: float | None = None,
    stopped: Callable[[], bool] = never,
) -> Film:
    """Play one game and write it as an H.264 video; the file appears whole or not at all.

    If a failure of the environment ends the game, the video starts again with a new game. A game that is cut, as those
    of an evaluation are, or that has not ended when the time is over, is shown as far as it was played.

    Args:
        config: the run's config.
        tensors: the model's parameters and buffers by name.
        out: the mp4 to write.
        deterministic: take the most likely action; otherwise sample.
        seed: of the environment and of sampled actions.
        timeout: seconds after which the video ends; None: ``evaluate.timeout``.
        stopped: called before every frame; returns True to end without a video.

    Raises:
        EnvironmentUnsupported: the environment has no pictures, ends the process that draws one, or fails again and
            again; or no encoder is installed.
        OSError: the encoder failed, as on a full disk.
        RuntimeError: `stopped` returned True, or there is no encoder that runs.
    """
    _encoder()
    driver = os.environ.get("SDL_VIDEODRIVER", "dummy")  # Gymnasium draws with SDL: open no window
    out = out.absolute()  # an environment may change the working directory
    temporary = out.with_name(f".{out.stem}.part{out.suffix}")
    most, timeout = limits(config), config.evaluate.timeout if timeout is None else timeout
    doing = Doing("film: making an environment")
    with environment_variables(SDL_VIDEODRIVER=driver):
        _refuse_fatal_drawing(config, seed, stopped)
    with (
        environment_variables(SDL_VIDEODRIVER=driver),
        torch_threads(1),
        fresh_envs(config, 1, seed=seed, doing=doing, stopped=stopped, render=True) as (envs, heartbeat),
    ):
        encoder = _Encoder(temporary, envs.frames_per_second)
        try:
            model = make_trained(config, EnvSpec.of(envs), tensors)
            temporary.unlink(missing_ok=True)  # perhaps a planted link
            streams = Streams.of(seed, EVALUATION_STREAM)
            observation, state, is_first = envs.reset(streams.env), model.initial_state(1), True
            heartbeat.answered()
            score, steps, unchanged, cut, why = 0.0, 0, 0, "", "draws no pictures, so there is nothing to record"
            end = monotonic() + timeout
            while True:
                if stopped():
                    raise RuntimeError("a signal asked for the end")
                try:
                    picture = envs.render()
                except EnvironmentUnsupported as error:
                    if steps or isinstance(error.__cause__, Unanswered):
                        raise
                    picture, why = None, f"could not be filmed: {error}"
                if picture is not None:
                    encoder.write(picture)
                elif encoder.size is None and steps >= BLANK_STEPS:
                    break
                legal = None if envs.action_mask is None else torch.from_numpy(envs.action_mask)
                x = map_tree(torch.from_numpy, observation)
                params, state = model.step(x, state, torch.tensor([is_first]), action_mask=legal)
                pi = model.distribution(params)
                action = pi.mode() if deterministic else pi.sample(streams.act)
                step = envs.step(model.actions.sent(action).numpy())
                heartbeat.answered()
                pairs = zip(leaves(step.observation), leaves(observation), strict=True)
                same = step.reward[0] == 0 and all(np.array_equal(after, before) for after, before in pairs)
                unchanged, observation = unchanged + 1 if same else 0, step.observation
                is_first, score = bool(step.lost[0]), score + float(step.reward[0])
                steps += 1
                doing.words = f"film: {steps:,} steps"
                if step.lost[0]:
                    encoder.close()
                    score, steps, unchanged, why = 0.0, 0, 0, f"was not played to its end: {step.why[-1]}"
                if step.done[0]:
                    break
                if unchanged >= most["stuck_after"]:
                    cut = f"nothing changed for {unchanged:,} steps"
                elif steps >= most["max_game_steps"]:
                    cut = f"the game had not ended after {steps:,} steps"
                elif monotonic() > end:
                    cut = f"the game had not ended within {timeout:g} s, after {steps:,} steps"
                if cut:
                    break
            if encoder.size is None:
                raise EnvironmentUnsupported(f"{name_of(config.env)} {why}")
            encoder.close()
            _refuse_unfinished(temporary)
            os.replace(temporary, out)
            return Film(score, cut)
        finally:
            with suppress(*FAILURES):  # what it has written is removed, and an error before this one is raised
                encoder.close()
            temporary.unlink(missing_ok=True)


def _refuse_fatal_drawing(config: Config, seed: int, stopped: Callable[[], bool]) -> None:
    """Refuse an environment whose first picture ends the process that it is drawn in, as a graphics library may.

    Raises:
        EnvironmentUnsupported: it does.
    """

    def draw() -> None:
        envs = make_envs(config.environment, 1, max_episode_steps=config.max_episode_steps, render=True)
        envs.reset(seed)
        envs.action_space.seed(seed)
        for _ in range(BLANK_STEPS + 1):  # as a film does
            with suppress(EnvironmentUnsupported):
                if envs.render() is not None:
                    break
            envs.step(np.asarray(envs.action_space.sample())[None])
        envs.close()

    how = "" if is_atari(config.environment) else fate(draw, min(TRIED_WITHIN, config.env_timeout), stopped)
    if how:
        raise EnvironmentUnsupported(
            f"{name_of(config.env)} cannot draw itself: its first picture ends the process by {how}; for MuJoCo on a "
            "machine without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa, for other environments use xvfb-run"
        )


def keepsakes(
    config: Config, directory: Path, *, games: bool, stopped: Callable[[], bool] = never, say: Say = unsaid
) -> Iterator[tuple[str, str]]:
    """Write the learning curve and a video of a finished run, and yield an event and a reason for each that failed.

    Nothing that fails here raises, since the run is over. A video that does not show its game to the end has an event,
    too.

    Args:
        config: the run's config.
        directory: the run directory.
        games: whether a game has finished, without which there is no curve.
        stopped: returns True to end without a video.
        say: prints a line.
    """
    try:
        if games:
            curve([directory], directory / "curve.png")
        else:
            yield "curve_skipped", "no game has ended"
    except FAILURES as error:
        yield "curve_skipped", one_line(error) or type(error).__name__
    try:
        within = FILM_WITHIN if games else ENDLESS_WITHIN
        say(f"playing a game for the film, {within:g} s at most")
        tensors = parameters(directory)
        film = record(config, tensors, directory / "replay.mp4", seed=config.seed, timeout=within, stopped=stopped)
        if film.cut:
            yield "video_cut", film.cut
    except FAILURES as error:
        yield "video_skipped", one_line(error) or type(error).__name__
