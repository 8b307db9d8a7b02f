"""Stacks come back byte by byte, whatever an environment's rule is for what it has not yet seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from hypothesis import given, settings
from hypothesis import strategies as st

from polyactor.data.frames import BLANK, CONTINUED, OTHER, Frames, frames_once, write_frames
from polyactor.envs import make_envs
from polyactor.envs.atari import AtariOptions
from polyactor.envs.serial_vector_env import SerialVectorEnv

Array = np.ndarray[Any, np.dtype[np.uint8]]
RULES = ("zeros", "repeated", "noise")
"""What a stack has in place of frames from before its game."""


def stacks(rng: np.random.Generator, rows: int, b: int, stack: int, frame: tuple[int, ...], begin: float) -> Array:
    """Stacks of games that begin with this chance in every row, each by a rule of its own; values repeat."""
    made = rng.integers(0, 3, (rows, b, stack, *frame), dtype=np.uint8)
    for t in range(rows):
        for column in range(b):
            if t > 0 and rng.random() >= begin:
                made[t, column, :-1] = made[t - 1, column, 1:]
                continue
            rule = RULES[rng.integers(3)]
            if rule == "zeros":
                made[t, column, :-1] = 0
            elif rule == "repeated":
                made[t, column, :-1] = made[t, column, -1]
    return made


def rebuilt(frames: Frames, like: Array) -> Array:
    """The stacks, written over what was in their place before."""
    into = np.full_like(like, 77)
    write_frames(into, frames)
    return into


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 12),
    b=st.integers(1, 4),
    stack=st.integers(1, 6),
    frame=st.sampled_from([(1, 1), (2, 2), (2, 4), (3, 1, 2)]),
    begin=st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_stacks_come_back_whatever_begins_where(
    seed: int, rows: int, b: int, stack: int, frame: tuple[int, ...], begin: float
) -> None:
    given = stacks(np.random.default_rng(seed), rows, b, stack, frame, begin)
    frames = frames_once(given)
    if frames is None:
        continued = (given[1:, :, :-1] == given[:-1, :, 1:]).all(tuple(range(2, given.ndim)))
        assert stack == 1 or not continued.any()
        return
    assert np.array_equal(rebuilt(frames, given), given)
    assert sum(each.nbytes for each in frames) < given.nbytes + frames.begins.nbytes


def test_a_frame_is_there_once() -> None:
    given = stacks(np.random.default_rng(0), 21, 8, 4, (8, 8), 0.0)
    frames = frames_once(given)
    assert frames is not None
    assert frames.newest.shape == (24, 8, 8, 8)
    assert len(frames.older) == 0
    assert not frames.begins.any()


def test_columns_of_a_larger_batch_are_read_and_written_in_place() -> None:
    rng = np.random.default_rng(1)
    batch = np.zeros((6, 9, 4, 2, 2), np.uint8)
    batch[:, 3:6] = given = stacks(rng, 6, 3, 4, (2, 2), 0.2)
    frames = frames_once(batch[:, 3:6])
    assert frames is not None
    into = np.full_like(batch, 7)
    write_frames(into[:, 3:6], frames)
    assert np.array_equal(into[:, 3:6], given)
    assert (into[:, :3] == 7).all()
    assert (into[:, 6:] == 7).all()


@given(row=st.integers(1, 5), column=st.integers(0, 1), byte=st.integers(0, 4 * 3 * 3 - 1), more=st.integers(1, 255))
@settings(max_examples=20, deadline=None)
def test_a_single_other_byte_is_kept(row: int, column: int, byte: int, more: int) -> None:
    given = stacks(np.random.default_rng(2), 6, 2, 4, (3, 3), 0.0)
    given[row, column].reshape(-1)[byte] ^= more
    frames = frames_once(given)
    assert frames is not None
    assert np.array_equal(rebuilt(frames, given), given)


def test_rules_of_a_first_row_are_told_apart_by_the_frames_themselves() -> None:
    given = stacks(np.random.default_rng(3), 12, 1, 3, (2, 2), 0.0) | 1  # no frame is zeros
    given[4, 0, :-1], given[8, 0, :-1] = 0, given[8, 0, -1]
    for t in (5, 6, 9, 10):
        given[t, 0, :-1] = given[t - 1, 0, 1:]
    given[7, 0, :-1], given[11, 0, :-1] = given[6, 0, 1:], given[10, 0, 1:]
    frames = frames_once(given)
    assert frames is not None
    begun = {4: BLANK, 8: OTHER}
    assert frames.begins[2:, 0].tolist() == [begun.get(t, CONTINUED) for t in range(12)]
    assert np.array_equal(rebuilt(frames, given), given)


class Falling(gymnasium.Env[Any, Any]):
    """A pixel that falls; games of 9 steps, and a step that fails now and then."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (6, 6), np.uint8)
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def _frame(self) -> Array:
        frame = np.zeros((6, 6), np.uint8)
        frame[self.t % 6] = self.np_random.integers(1, 255)
        return frame

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.np_random.random() < 0.002:
            raise RuntimeError("lost")
        return self._frame(), 1.0, self.t == 9, False, {}


def games(envs: Any, actions: int, steps: int, t: int) -> tuple[int, int, int, int]:
    """Play, check the stacks of every t steps, and count rows, resets, lost lives and failed games."""
    rng, row, seen = np.random.default_rng(0), envs.reset(3), [0, 0, 0, 0]
    for _ in range(steps // (t * envs.num_envs) + 1):
        rows = [row]
        for _ in range(t):
            step = envs.step(rng.integers(0, actions, envs.num_envs))
            rows.append(row := step.observation)
            seen[1] += int(step.done.sum())
            seen[2] += int((step.terminated & ~step.done).sum())
            seen[3] += int(step.lost.sum())
        given = np.stack(rows)
        frames = frames_once(given)
        assert frames is not None
        assert np.array_equal(rebuilt(frames, given), given)
        seen[0] += t * envs.num_envs
    rows_seen, resets, lives, lost = seen
    return rows_seen, resets, lives, lost


@pytest.mark.parametrize("padding", ["reset", "zero"])
def test_stacks_of_gymnasiums_wrapper_come_back(padding: str) -> None:
    make: Callable[[], Any] = lambda: FrameStackObservation(Falling(), 4, padding_type=padding)  # noqa: E731
    envs = SerialVectorEnv([make] * 3, "falling")
    _, resets, _, lost = games(envs, 2, 2_500, 7)
    envs.close()
    assert resets > 100
    assert lost > 3


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Pong", "Breakout", "SpaceInvaders"])
def test_stacks_of_atari_come_back(game: str) -> None:
    envs = make_envs(f"{game}NoFrameskip-v4", 8, atari=AtariOptions(life_loss=True), threads=1)
    rows, resets, lives, _ = games(envs, 3, 100_000, 20)
    envs.close()
    assert rows >= 100_000
    assert resets > 50
    assert game == "Pong" or lives > resets  # Pong has no lives to lose
