"""Resizing of images before they are stored: bytes with three axes, channels first or last."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyactor.errors import UsageError, one_line

MOST_CHANNELS = 32
"""Most channels of an image, which tell the axis that they are on."""
LARGEST_SIDE = 4_096
"""Most pixels of a height or width that images are resized to."""


class Resizing:
    """Resizes images of one shape to H x W; each pixel is the mean of the area that it covers.

    Args:
        shape: the shape of the images, ``[h, w, C]`` or ``[C, h, w]``: C is the smaller of the two, as for torsos.
        size: H and W, in pixels.

    Attributes:
        shape: the shape of resized images, ``[H, W, C]`` or ``[C, H, W]``.

    Raises:
        UsageError: neither axis is one of channels, or H or W is so small that it would be taken for it.
    """

    def __init__(self, shape: tuple[int, ...], size: Sequence[int]) -> None:
        height, width = size
        channels, self._last = min(shape[0], shape[-1]), shape[-1] <= shape[0]
        said = f"--env-resize {height} {width} is not allowed for images of shape {shape}"
        if channels > MOST_CHANNELS:
            raise UsageError(f"{said}: neither the first nor the last axis has at most {MOST_CHANNELS} channels")
        if min(size) <= channels:
            raise UsageError(f"{said}: both numbers must be above that of the channels, which is {channels}")
        self.shape = (height, width, channels) if self._last else (channels, height, width)

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """Return a resized image, of one with the shape that was said."""
        from PIL import Image  # only where images are resized

        x = np.asarray(image, np.uint8)
        resized, axis = np.empty(self.shape, np.uint8), 2 if self._last else 0
        height, width, _ = self.shape if self._last else (*self.shape[1:], 0)
        # One channel at a time: Pillow takes four for colours and their transparency, and mixes them.
        for before, after in zip(np.moveaxis(x, axis, 0), np.moveaxis(resized, axis, 0), strict=True):
            picture = Image.fromarray(np.ascontiguousarray(before))
            after[...] = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
        return resized


def size_of(resize: Sequence[Any]) -> tuple[int, ...]:
    """Return H and W that images are resized to, of numbers or texts; of none, none.

    Raises:
        UsageError: they are not two whole numbers from 1 to `LARGEST_SIDE`.
    """
    try:
        size = tuple(int(each) if isinstance(each, str) else index(each) for each in resize)
    except (TypeError, ValueError):
        size = (0,)
    if isinstance(resize, str) or (size and (len(size) != 2 or not all(1 <= each <= LARGEST_SIDE for each in size))):
        said = one_line(" ".join(map(str, resize)) if isinstance(resize, list | tuple) else resize, most=80)
        raise UsageError(
            f"--env-resize {said} is not allowed: give a height and a width from 1 to {LARGEST_SIDE}, such as 84 84"
        )
    return size
