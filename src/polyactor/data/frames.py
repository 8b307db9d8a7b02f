"""Stacks of frames: each frame is kept or sent once, and the stacks are rebuilt from the frames."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTINUED, BLANK, OTHER = range(3)
"""What the older frames of a row's stack are: those of the row before, zeros, or neither."""


class Frames(NamedTuple):
    """The frames of stacks ``[R, B, S, *F]``, each once.

    Attributes:
        newest: ``[S−1+R, B, *F]`` the older frames of row 0 and then the newest frame of every row.
        begins: ``[S−1+R, B]`` uint8, for each of these rows what its older frames are.
        older: ``[n, S−1, *F]`` the older frames of the n rows where they are `OTHER`, in the order of `begins`.
    """

    newest: NDArray[Any]
    begins: NDArray[np.uint8]
    older: NDArray[Any]


def frames_once(stacks: NDArray[Any]) -> Frames | None:
    """Return each frame of stacks once, or None if the stacks are no larger than that.

    Nothing is assumed of an environment: a frame is left out only where it equals the one that it is rebuilt from.

    Args:
        stacks: ``[R, B, S, *F]`` of a dtype of whole numbers, the newest frame last.
    """
    rows, b, stack = stacks.shape[:3]
    if stack < 2 or not stacks.size:
        return None
    begins = np.zeros((stack - 1 + rows, b), np.uint8)
    begins[stack:] = ~_continued(stacks)
    t, column = begins.nonzero()
    if len(t) == (rows - 1) * b:
        return None
    newest = np.concatenate([stacks[0, :, :-1].swapaxes(0, 1), stacks[:, :, -1]])
    older = stacks[t - (stack - 1), column, :-1]
    blank = ~older.any(tuple(range(1, older.ndim)))
    begins[t, column] = np.where(blank, BLANK, OTHER)
    return Frames(newest, begins, older[~blank])


def _continued(stacks: NDArray[Any]) -> NDArray[np.bool_]:
    """Return ``[R−1, B]``, for each row but the first whether its older frames are those of the row before."""
    size = stacks[0, 0, 0].nbytes
    word = next(word for word in (8, 4, 2, 1) if size % word == 0)  # the fewer are compared, the faster
    words = stacks.reshape(*stacks.shape[:2], -1).view(f"u{word}")
    frame = size // word
    equal: NDArray[np.bool_] = (words[1:, :, :-frame] == words[:-1, :, frame:]).all(2)
    return equal


def write_frames(into: NDArray[Any], frames: Frames) -> None:
    """Rebuild the stacks that `frames_once` was given.

    Args:
        into: ``[R, B, S, *F]`` the memory that the stacks are written to.
        frames: the frames of the stacks.
    """
    rows, last = len(into), into.shape[2] - 1
    write_stacks(into, frames.newest, frames.begins != CONTINUED)
    for (t, b), older in zip(np.argwhere(frames.begins == OTHER), frames.older, strict=True):
        for age in range(min(last, rows + last - t)):  # row t + age still has all but the `age` oldest of these frames
            if age > 0 and frames.begins[t + age, b] != CONTINUED:
                break
            into[t - last + age, b, : last - age] = older[age:]


def write_stacks(into: NDArray[Any], newest: NDArray[Any], begins: NDArray[np.bool_]) -> None:
    """Write stacks whose older frames are the newest ones of the rows before, and zeros before the first of an episode.

    Args:
        into: ``[R, B, S, *F]`` the memory that the stacks are written to, the newest frame last.
        newest: ``[S−1+R, B, *F]`` the newest frame of every row, and of the S−1 rows before the first of them.
        begins: ``[S−1+R, B]`` whether an episode begins with the row.
    """
    rows, last = len(into), into.shape[2] - 1
    episode = begins.cumsum(0)
    for age in range(last + 1):
        past, place = slice(last - age, last - age + rows), into[:, :, last - age]
        place[:] = newest[past]
        place[episode[past] != episode[last:]] = 0
