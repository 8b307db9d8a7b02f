"""Pictures that environments draw, as RGB bytes for films: what ``render()`` returns is converted or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = (1, 3, 4)
"""Numbers of channels that a picture may have: gray, RGB, and RGB with transparency, which is dropped."""
WANTED = "a film needs pictures [height, width, 3] of bytes (mode rgb_array)"
DEFAULT_RATE, MOST_RATE = 30, 240
"""Pictures per second of environments that state none, and the most that a film has."""


def rgb(answer: Any) -> NDArray[np.uint8] | None:
    """Return a picture as RGB bytes ``[H, W, 3]``, or None where nothing was drawn.

    Gray pictures, pictures with transparency, those with the channels first, floats (in [0, 1], or else in [0, 255]),
    other integers, booleans and lists of pictures, of which the last counts, are converted.

    Args:
        answer: what ``render()`` returned.

    Raises:
        ValueError: it is no picture; the text says what it is and what is wanted.
    """
    if isinstance(answer, list | tuple) and all(hasattr(each, "shape") for each in answer):
        answer = answer[-1] if len(answer) else None  # the pictures since the last call (mode rgb_array_list)
    if answer is None:
        return None
    try:
        x = np.asarray(answer)
    except Exception:  # objects convert themselves and may raise anything
        x = np.asarray(None)
    shape = list(x.shape)
    if x.ndim == 4 and len(x):
        x = x[-1]
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim == 3 and x.shape[-1] not in CHANNELS and x.shape[0] in CHANNELS:
        x = x.transpose(1, 2, 0)
    if x.dtype.kind not in "buif":
        raise ValueError(f"render() returned an object of type {type(answer).__name__}; {WANTED}")
    if x.ndim != 3 or x.shape[-1] not in CHANNELS or not x.size:
        raise ValueError(f"render() returned numbers of shape {shape}; {WANTED}")
    if x.dtype != np.uint8:
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 255):  # a NaN is neither
            raise ValueError(f"render() returned numbers from {low:g} to {high:g}; {WANTED}")
        x = (x * 255.0 if x.dtype.kind in "bf" and high <= 1 else x).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[:2], 3)) if x.shape[-1] == 1 else x[..., :3])


def rate(metadata: Any) -> int:
    """Return the pictures per second that an environment's metadata state, or 30 where they state no such number."""
    try:
        stated = float(metadata["render_fps"])
        return min(MOST_RATE, max(1, round(stated))) if stated > 0 else DEFAULT_RATE
    except Exception:  # the user's own object may be anything
        return DEFAULT_RATE


def draws(metadata: Any) -> bool:
    """Return whether an environment's metadata name the mode ``rgb_array``."""
    try:
        return "rgb_array" in metadata["render_modes"]
    except Exception:  # the user's own object may be anything
        return False
