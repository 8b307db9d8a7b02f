"""Action masks: which choices of the discrete parts of an action are legal, as environments say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyactor.envs.answers import Unsound, shortened
from polyactor.envs.vector_env import ActionSpace

MASK = "action_mask"
"""The key of a mask, in the info of a step or in an observation that is a Dict."""
METHOD = "action_masks"
"""The method of an environment that returns its mask."""

_NOTHING = np.empty(0, np.bool_)

Mask = NDArray[np.bool_]
"""Which choices are legal, ``[C]`` or ``[B, C]``: those of the first discrete part of an action, of the second, …"""


class ActionMasks:
    """Reads the action masks of environments from ``info["action_mask"]`` or from their method ``action_masks()``.

    A mask is one array of C numbers, or has the structure of the action space, with an array for each of its parts; a
    missing part and a Box have no illegal choices.

    Args:
        acted: the action space of one environment.
    """

    def __init__(self, acted: spaces.Space[Any]) -> None:
        sizes = choices(acted)
        self.acted, self.choices = acted, int(sizes.sum())
        self.firsts = np.cumsum(sizes) - sizes

    def blank(self, rows: int) -> Mask:
        """Return a mask ``[B, C]`` in which all choices are legal."""
        return np.ones((rows, self.choices), np.bool_)

    def given(self, env: gymnasium.Env[Any, Any], info: Any) -> bool:
        """Return whether an environment that was just reset gives masks."""
        if not self.choices:
            return False
        with suppress(Exception):  # whatever a wrapper raises where it has no such attribute
            return (isinstance(info, Mapping) and MASK in info) or callable(env.get_wrapper_attr(METHOD))
        return False

    def read(self, env: gymnasium.Env[Any, Any], info: Any, *, acted_on: bool) -> Mask:
        """Return the mask ``[C]`` of an environment's present state.

        Args:
            env: the environment.
            info: what its `reset` or `step` returned last.
            acted_on: whether an action will be taken in this state; if not, all is legal where nothing is.

        Raises:
            Unsound: there is no mask, it has another size or other numbers than 0 and 1, or nothing is legal.
        """
        raw, method = info.get(MASK) if isinstance(info, Mapping) else None, None
        if raw is None:
            with suppress(AttributeError):
                method = env.get_wrapper_attr(METHOD)
            raw = None if method is None else method()
        if raw is None:
            if acted_on:
                missing = method is None and not (isinstance(info, Mapping) and MASK in info)
                raise Unsound(f"gave no {MASK}, though the first reset did" if missing else f"gave None as {MASK}")
            return _all(self.choices)
        return self.parsed(raw, acted_on=acted_on)

    def parsed(self, raw: Any, *, acted_on: bool) -> Mask:
        """Return a mask that is given in one of the forms as ``[C]``.

        Raises:
            Unsound: it has another size, other numbers than 0 and 1, some that are masked or parts that actions lack,
                or nothing is legal where it is acted on.
        """
        parts = [] if isinstance(raw, np.ndarray) else list(_parts(self.acted, raw))
        if np.ma.is_masked(raw) or any(np.ma.is_masked(part) for part, _ in parts):
            raise Unsound(f"gave the action mask {shortened(raw)}, of which numbers are masked")
        numbers = np.concatenate([_NOTHING, *(part for part, _ in parts)]) if parts else np.asarray(raw)
        if numbers.size != self.choices:
            raise Unsound(
                f"gave an action mask of {numbers.size} numbers where its actions have {self.choices} choices"
            )
        for part, size in parts:
            if part.size != size:
                raise Unsound(
                    f"gave an action mask of {part.size} numbers for a part of its actions with {size} choices"
                )
        mask: Mask = numbers.ravel() != 0
        if numbers.dtype != np.bool_ and not ((numbers == 0) | (numbers == 1)).all():
            raise Unsound(f"gave the action mask {shortened(raw)}, which has other numbers than 0 and 1")
        if not np.logical_or.reduceat(mask, self.firsts).all():
            if acted_on:
                raise Unsound("gave an action mask without a legal action, though its game goes on")
            mask[:] = True
        return mask


def _parts(space: spaces.Space[Any], mask: Any) -> Iterator[tuple[NDArray[Any], int]]:
    """Iterate over the masks of the discrete parts of a space, each flat, with the number of choices that it has.

    A missing part has no illegal choices.
    """
    if isinstance(space, spaces.Box):
        return
    if isinstance(space, spaces.Dict) and isinstance(mask, Mapping):
        if unknown := [key for key in mask if key not in space.spaces]:
            raise Unsound(f"gave an action mask for {unknown[0]!r}, which its actions do not have")
        for key, part in space.spaces.items():
            yield from _parts(part, mask.get(key))
    elif isinstance(space, spaces.Tuple) and _nested(mask) and len(mask) == len(space.spaces):
        for part, each in zip(space.spaces, mask, strict=True):
            yield from _parts(part, each)
    else:
        sizes = choices(space).tolist()
        given: list[Any] = [None] * len(sizes) if mask is None else list(_leaves(mask))
        if len(given) == len(sizes):
            yield from ((_all(n) if each is None else np.ravel(each), n) for each, n in zip(given, sizes, strict=True))
        elif len(given) == 1 or not any(map(np.ndim, given)):  # of all parts together
            yield np.ravel(given[0] if len(given) == 1 else given), sum(sizes)
        else:
            raise Unsound(
                f"gave the action mask {shortened(mask)}, of {len(given)} parts for {len(sizes)} of its actions"
            )


def _all(size: int) -> Mask:
    """Return a mask ``[C]`` without illegal choices."""
    return np.ones(size, np.bool_)


def _nested(mask: Any) -> bool:
    """Return whether a mask is a list of masks, some of which may be missing."""
    return isinstance(mask, tuple | list) and any(each is None or hasattr(each, "__len__") for each in mask)


def _leaves(mask: Any) -> Iterator[Any]:
    """Iterate over the innermost arrays of lists in lists; None stands for one that is missing."""
    if _nested(mask):
        for each in mask:
            yield from _leaves(each)
    else:
        yield mask


def choices(space: spaces.Space[Any]) -> NDArray[np.int64]:
    """Return the number of choices of each discrete part of a space, ``[K]``, in the order of flattening."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return np.concatenate([np.empty(0, np.int64), *map(choices, parts)])
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), 2)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).astype(np.int64)
    return np.empty(0, np.int64)


def draw(space: ActionSpace, rows: int, rng: np.random.Generator, legal: Mask | None = None) -> NDArray[Any]:
    """Draw actions of a policy ``[B, *A]``, uniformly over the legal choices, and over [-1, 1] in a Box.

    Args:
        space: the action space of the policy.
        rows: B.
        rng: the random stream.
        legal: ``[B, C]`` the legal choices; None allows all.
    """
    sizes = choices(space)
    mask = np.ones((rows, int(sizes.sum())), np.bool_) if legal is None else legal
    lots = np.where(mask, rng.random(mask.shape), -1.0)
    parts = np.split(lots, np.cumsum(sizes)[:-1], axis=1) if len(sizes) else []
    drawn = [part.argmax(1) for part in parts]
    if isinstance(space, spaces.Discrete):
        single: NDArray[Any] = drawn[0]
        return single
    box = space if isinstance(space, spaces.Box) else space.spaces[1] if isinstance(space, spaces.Tuple) else None
    if box is None:
        return np.stack(drawn, 1)
    numbers = rng.uniform(-1, 1, (rows, *(box.shape or ()))).astype(np.float32)
    return np.concatenate([*(each[:, None].astype(np.float32) for each in drawn), numbers], 1)
