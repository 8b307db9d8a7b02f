"""Videos: one game of a policy as an mp4, and the video and learning curve of a finished run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.config import Config
from polyactor.envs import EnvSpec
from polyactor.errors import CheckpointError, EnvironmentUnsupported
from polyactor.evaluation.evaluate import MAX_GAME_STEPS, STUCK_AFTER, fresh_envs
from polyactor.evaluation.policy import make_trained, read
from polyactor.report.curves import curve
from polyactor.shared.counters import never
from polyactor.system.machine import torch_threads
from polyactor.system.process_state import environment_variables

MIN_SIZE = 320
"""Least height of a video in pixels; smaller frames are enlarged by a whole factor, so that players show them sharp."""


@torch.inference_mode()
def record(
    config: Config,
    tensors: Mapping[str, Tensor],
    out: Path,
    *,
    deterministic: bool = False,
    seed: int = 0,
    stopped: Callable[[], bool] = never,
) -> float:
    """Play one game and write it as an H.264 video; the file appears whole or not at all.

    If a failure of the environment ends the game, the video starts again with a new game.

    Args:
        config: the run's config.
        tensors: the model's parameters and buffers by name.
        out: the mp4 to write.
        deterministic: take the most likely action; otherwise sample.
        seed: of the environment and of sampled actions.
        stopped: called before every frame; returns True to end without a video.

    Returns:
        The score of the game.

    Raises:
        EnvironmentUnsupported: the environment has no images or fails again and again, or no encoder is installed.
        RuntimeError: `stopped` returned True.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        raise EnvironmentUnsupported('a video needs an encoder: pip install "polyactor[video]"') from None
    temporary = out.with_name(f".{out.stem}.part{out.suffix}")
    writer = None
    driver = os.environ.get("SDL_VIDEODRIVER", "dummy")  # Gymnasium draws with SDL: open no window
    with (
        environment_variables(SDL_VIDEODRIVER=driver),
        torch_threads(1),
        fresh_envs(config, 1, seed=seed, stopped=stopped, render=True) as (envs, answered),
    ):
        try:
            model = make_trained(config, EnvSpec.of(envs), tensors)
            temporary.unlink(missing_ok=True)  # perhaps a planted link
            streams = Streams.of(seed, EVALUATION_STREAM)
            observation, state, is_first = torch.from_numpy(envs.reset(streams.env)), model.initial_state(1), True
            answered()
            score, unchanged = 0.0, 0
            for _ in range(MAX_GAME_STEPS):
                if stopped():
                    raise RuntimeError("a signal asked for the end")
                frame = envs.render()
                if frame is None:
                    raise EnvironmentUnsupported(f"{config.env} draws no pictures, so there is nothing to record")
                if writer is None:
                    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2  # H.264 wants even sizes
                    factor = max(1, -(-MIN_SIZE // height))
                    writer = imageio_ffmpeg.write_frames(
                        str(temporary),
                        (width, height),
                        fps=envs.frames_per_second,
                        codec="libx264",
                        macro_block_size=2,
                        output_params=["-vf", f"scale={width * factor}:{height * factor}:flags=neighbor"],
                    )
                    writer.send(None)
                writer.send(frame[:height, :width].tobytes())
                params, state = model.step(observation, state, torch.tensor([is_first]))
                pi = model.distribution(params)
                action = pi.mode() if deterministic else pi.sample(streams.act)
                step = envs.step(action.numpy())
                answered()
                after = torch.from_numpy(step.observation)
                unchanged = unchanged + 1 if torch.equal(after, observation) and step.reward[0] == 0 else 0
                observation, is_first, score = after, bool(step.lost[0]), score + float(step.reward[0])
                if step.lost[0]:
                    writer.close()
                    writer, score, unchanged = None, 0.0, 0
                elif step.done[0] or unchanged >= STUCK_AFTER:
                    break
            if writer is None:
                raise EnvironmentUnsupported(f"no game of {config.env} was played to its end: {step.why[-1]}")
            writer.close()
            writer = None
            os.replace(temporary, out)
            return score
        finally:
            if writer is not None:
                writer.close()
            temporary.unlink(missing_ok=True)


def keepsakes(
    config: Config, directory: Path, *, games: bool, stopped: Callable[[], bool] = never
) -> Iterator[tuple[str, str]]:
    """Write the learning curve and a video of a finished run, and yield an event and a reason for each that failed.

    Args:
        config: the run's config.
        directory: the run directory.
        games: whether a game has finished, without which there is no curve.
        stopped: returns True to end without a video.
    """
    if games:
        curve([directory], directory / "curve.png")
    else:
        yield "curve_skipped", "no game has finished"
    try:
        _, tensors = read(directory, trust_env=True)
        record(config, tensors, directory / "replay.mp4", seed=config.seed, stopped=stopped)
    # OSError and RuntimeError come from the encoder, the latter also from a stop signal.
    except (EnvironmentUnsupported, CheckpointError, OSError, RuntimeError) as error:
        yield "video_skipped", str(error) or type(error).__name__
