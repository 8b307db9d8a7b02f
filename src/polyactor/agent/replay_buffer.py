"""A replay buffer of whole rollouts in memory-mapped files; each frame of stacked images is stored once."""

from __future__ import annotations

import math
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyactor.data import FIELDS, Rollout, Tree, leaves, map_tree, named
from polyactor.data.frames import write_stacks
from polyactor.errors import CheckpointError, OutOfResources, RunDirectoryError

ADDED = "added"
"""The array (and file) that counts the rollouts added so far."""
FRAMES = "observation"
"""The rollout field of which only the newest frame of a stack is stored."""


def overwritten(length: int, stack: int) -> int:
    """Return how many of the oldest rollouts of T = `length` rows miss a row, or frames of their first stacks."""
    return math.ceil(stack / length)


class ReplayBuffer:
    """Keeps the latest rollouts ``[T, B]`` in a circular buffer and samples rollouts of single environments from it.

    Row T of a rollout is row 0 of the next one, so the rollouts of an environment are one stream, and row t of slot i
    is row ``i · T + t`` of every array. Of stacked frames only the newest is stored. A stack is rebuilt from the rows
    before it, with blank frames before the first row of the episode (a lost life does not begin an episode).

    Args:
        like: a rollout with the shapes and dtypes of those to be added.
        rollouts: the number of slots. Row T of the newest rollout overwrites the oldest one, and the first stacks of
            the next ones need the overwritten frames, so as many as `overwritten` says cannot be sampled.
        stack: frames per observation, the newest last; 1 if observations are not stacks.
        folder: the folder of the files; None keeps everything in memory.

    Raises:
        OutOfResources: the disk is too small; the whole size is reserved at once.
        RunDirectoryError: the files cannot be written.
        CheckpointError: the folder has files of another size, or is a symbolic link.
    """

    def __init__(self, like: Rollout, rollouts: int, *, stack: int = 1, folder: Path | None = None) -> None:
        self.length, self.columns = like.reward.shape
        self.slots, self.stack = rollouts, stack
        self.lost = overwritten(self.length, stack)
        shapes = _shapes(like, rollouts, stack)
        self.arrays = {name: _array(shape, dtype, name, folder) for name, (shape, dtype) in shapes.items()}
        self.names = {field: named(field, getattr(like, field)) for field in kept(like)}

    @staticmethod
    def size(like: Rollout, rollouts: int, *, stack: int = 1) -> int:
        """Return the size in bytes of a buffer made with these arguments."""
        return sum(_bytes(shape, dtype) for shape, dtype in _shapes(like, rollouts, stack).values())

    @property
    def added(self) -> int:
        """Return the number of rollouts added so far, including those overwritten since."""
        return int(self.arrays[ADDED][0])

    @property
    def whole(self) -> range:
        """Return the numbers of the rollouts that can be sampled, counted from the first that was ever added."""
        return self._whole(self.added)

    def _whole(self, added: int) -> range:
        return range(max(0, added - self.slots + self.lost), added)

    @property
    def steps(self) -> int:
        """Return the number of agent steps (rows times environments) that can be sampled."""
        return len(self.whole) * self.length * self.columns

    @property
    def full(self) -> bool:
        """Return whether each further rollout replaces an old one."""
        return len(self.whole) == self.slots - self.lost

    def add(self, rollout: Rollout) -> None:
        """Write a rollout ``[T, B]`` over the oldest one."""
        slot, t = self.added % self.slots, self.length
        first = slot * t
        after = (first + t) % (self.slots * t)  # where row T goes
        for field in kept(rollout):
            axes = FIELDS[field].axes
            for name, tensor in zip(leaves(self.names[field]), leaves(getattr(rollout, field)), strict=True):
                array, rows = self.arrays[name], tensor.numpy()
                if field == FRAMES and self.stack > 1:
                    rows = rows[:, :, -1]
                if axes[0] == "B":
                    array[slot] = rows
                    continue
                array[first : first + t] = rows[:t]
                if axes[0] == "T+1":
                    array[after] = rows[t]
        self.arrays[ADDED][0] += 1  # last: a rollout that was not written whole does not count

    def flushed(self) -> int:
        """Write everything to disk and return the number of rollouts added so far."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        return self.added

    def rewind(self, added: int) -> None:
        """Go back to the moment when `added` rollouts had been added, and forget the later ones.

        Raises:
            CheckpointError: rollouts that could be sampled at that moment have been overwritten or were never written.
        """
        wanted = self._whole(added)
        lost = len(wanted) > 0 and wanted.start < self.whole.start
        if lost or self.added < added:
            why = ", written over some that it needs" if lost else ""
            raise CheckpointError(
                f"the replay files have {self.added} rollouts where the checkpoint has {added}{why}, so the run cannot "
                "go on to the bit; it can with new episodes: add --restart"
            )
        self.arrays[ADDED][0] = added

    def sample(self, count: int, generator: torch.Generator, length: int | None = None) -> Rollout:
        """Sample sequences of single environments uniformly, with replacement, as one rollout ``[T, count]``.

        Args:
            count: the number of sequences.
            generator: the random stream that draws them.
            length: T of sequences that begin at any row; by default sequences are rollouts as they were added. The
                recurrent state is always the one stored before a rollout's first row.
        """
        t, every = (self.length, self.length) if length is None else (length, 1)
        first, rows = self.whole.start * self.length, len(self.whole) * self.length
        starts = (rows - t) // every + 1
        drawn = torch.randint(starts * self.columns, (count,), generator=generator, device=generator.device)
        start, column = np.divmod(drawn.cpu().numpy(), self.columns)
        return self.take(first + every * start, column, t)

    def take(self, start: NDArray[np.int64], column: NDArray[np.int64], t: int) -> Rollout:
        """Return n sequences of single environments as a rollout ``[T, n]``.

        Args:
            start: ``[n]`` the first row of each sequence, counted from the first row that was ever added.
            column: ``[n]`` the environment of each sequence.
            t: T.
        """
        rows = self.slots * self.length
        row_tp1 = ((start + np.arange(t + 1)[:, None]) % rows, column)
        place = {"T": (row_tp1[0][:t], column), "T+1": row_tp1, "B": (start // self.length % self.slots, column)}

        def taken(field: str) -> Tree:
            if field == FRAMES and self.stack > 1:
                return self._observation(start, column, t)
            rows = place[FIELDS[field].axes[0]]
            return map_tree(lambda name: _aligned(self.arrays[name][rows]), self.names[field])

        return Rollout(**{field: taken(field) for field in self.names})

    def _observation(self, start: NDArray[np.int64], column: NDArray[np.int64], t: int) -> Tensor:
        """Return the observations ``[T+1, n, *O]`` of n sequences, with their stacks of frames rebuilt."""
        rows, older = self.slots * self.length, self.stack - 1
        row = (start + np.arange(-older, t + 1)[:, None]) % rows
        frames: NDArray[Any] = self.arrays["observation"][row, column]
        is_first = self.arrays["is_first"][row, column]
        stacked = torch.empty(t + 1, *frames.shape[1:], self.stack, dtype=torch.from_numpy(frames[:0]).dtype)
        stacked = stacked.movedim(-1, 2)  # frames last in memory, as convolutions want it
        write_stacks(stacked.numpy(), frames, is_first)
        return stacked


def _aligned(array: NDArray[Any]) -> Tensor:
    """Return a copy allocated by torch: the alignment of NumPy's memory varies, and with it the rounding of sums."""
    return torch.from_numpy(array).clone()


Shapes = dict[str, tuple[tuple[int, ...], "np.dtype[Any]"]]


def kept(rollout: Rollout) -> list[str]:
    """Return the names of the rollout fields that a replay buffer stores."""
    return [name for name, own in FIELDS.items() if own.replayed and getattr(rollout, name) is not None]


def _shapes(like: Rollout, rollouts: int, stack: int) -> Shapes:
    shapes: Shapes = {ADDED: ((1,), np.dtype(np.int64))}
    for field in kept(like):
        rows = rollouts if FIELDS[field].axes[0] == "B" else rollouts * len(like.reward)
        tree = getattr(like, field)
        for name, tensor in zip(leaves(named(field, tree)), leaves(tree), strict=True):
            array = tensor[:, :, -1].numpy() if field == FRAMES and stack > 1 else tensor.numpy()
            row = array.shape if FIELDS[field].axes[0] == "B" else array.shape[1:]
            shapes[name] = ((rows, *row), array.dtype)
    return shapes


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


def _refuse_foreign(path: Path, size: int) -> None:
    """Raise CheckpointError for a file of another size, and for links, through which other files could be written."""
    for place in (path.parent.parent, path.parent, path):
        if place.is_symlink():
            raise CheckpointError(f"{place} is a symbolic link: remove it to go on without what was remembered")
    if not path.exists():
        return
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size not in (0, size):
        raise CheckpointError(
            f"{path} has {found.st_size} bytes where the run's has {size}: "
            f"remove {path.parent} to go on without what was remembered"
        )


def _array(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, folder: Path | None) -> NDArray[Any]:
    """Map an array from a file whose whole size is reserved, or from anonymous memory if there is no folder."""
    size = _bytes(shape, dtype)
    if folder is None:
        return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, math.prod(shape)).reshape(shape)
    path = folder / f"{name}.bin"
    _refuse_foreign(path, size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)  # give back what was reserved before the disk was full
        kind = OutOfResources if error.errno in (28, 122) else RunDirectoryError
        raise kind(f"cannot reserve {size / 1e9:.1f} GB for replay in {path}: {error.strerror}") from error
    return np.memmap(path, dtype, "r+", shape=shape)
