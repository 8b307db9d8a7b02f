"""Conversion of observations and actions between one environment of Gymnasium and `VectorEnv`, by its spaces alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyactor.envs.action_masks import MASK, ActionMasks, choices
from polyactor.envs.answers import Unsound, shortened
from polyactor.envs.resizing import Resizing
from polyactor.envs.vector_env import VECTOR, ActionSpace, row_dtype
from polyactor.errors import EnvironmentUnsupported, UsageError

OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, or Dict and Tuple of these"
"""The supported observation spaces, in words for the sentences of errors."""
ACTIONS = "Discrete, MultiDiscrete, MultiBinary, float Box, or Dict and Tuple of these"
"""The supported action spaces, in words for the sentences of errors."""
MOST_NUMBERS = 1 << 24
"""Most numbers in one observation after flattening; more would not fit a rollout."""
MOST_CHOICES = 1 << 20
"""Most choices of all discrete parts of an action together; a policy has an output for each."""

Keys = tuple[Any, ...]
"""The keys that lead to a part of a Dict or Tuple."""
Part = tuple[str, Keys, spaces.Space[Any]]
"""A part of a Dict or Tuple that is neither: its keys joined by dots, its keys, and its space."""


class Conversion:
    """Converts observations and actions of an environment, which itself is not needed.

    An observation has one entry or several. Each image in a Dict or Tuple (bytes with three axes) is an entry of its
    own. All else is flattened to one vector (`gymnasium.spaces.flatten`), in which numbers of a discrete space are
    one-hot. Texts are dropped, and so is an action mask. Bytes stay bytes where no other number is beside them, and
    other numbers become float32. A Box alone keeps its shape. Images may be resized.

    The policy's action has the choices of all discrete parts first, each counted from 0, and then the numbers of all
    parts that are a Box. Those are clipped to [-1, 1] and rescaled to [low, high] in dimensions with two bounds, and
    clipped at a single bound.

    Args:
        observed: the observation space of the environment.
        acted: the action space of the environment.
        name: the name of the environment in sentences.
        resize: height and width that every image is resized to, in pixels; empty leaves images as they are.

    Attributes:
        flat: whether observations are converted by `encode` one by one, and not only cast.
        observation_space: that of `VectorEnv`.
        action_space: that of `VectorEnv`.
        decode: converts actions ``[B, *A]`` of the policy to B of the environment, in its structure, dtype and bounds.
        choices: C, the number of choices of all discrete parts of an action together.
        masks: reads action masks.
        hidden: the shapes of the parts with two axes or more that flattening makes part of a vector.
        dropped: the names of the texts that are left out of observations.

    Raises:
        EnvironmentUnsupported: polyactor does not support a space.
        UsageError: there is no image to resize, or not to this size.
    """

    observation_space: spaces.Box | spaces.Dict
    decode: Callable[[NDArray[Any]], Sequence[Any]]

    def __init__(
        self, observed: spaces.Space[Any], acted: spaces.Space[Any], name: str, resize: Sequence[int] = ()
    ) -> None:
        actions = _Actions(acted, name)
        self.action_space, self.decode, self.choices = actions.space, actions.decode, actions.choices
        self.masks = ActionMasks(acted)
        said = f"{name} has the observation space {shortened(observed)}"
        self.masked = isinstance(observed, spaces.Dict) and _is_mask(observed.spaces.get(MASK), self.choices)
        """Whether observations have an entry for the action mask."""
        found = [each for each in _named(observed) if not (self.masked and each[1][0] == MASK)]
        self.dropped = tuple(path for path, keys, part in found if keys and _is_text(part))
        own = {path: (keys, part) for path, keys, part in found if path not in self.dropped}
        parts = [(path, part) for path, (_, part) in own.items()]
        for _, part in parts if parts or not self.dropped else [("", observed)]:
            if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
                raise EnvironmentUnsupported(f"{said}; what can be observed is {OBSERVATIONS}.")
            if isinstance(part, spaces.Box) and (np.isnan(part.low).any() or np.isnan(part.high).any()):
                raise EnvironmentUnsupported(f"{said}; its bounds must be numbers or infinities, not NaN.")
        images = [(path, part) for path, part in parts if resize and _is_image(part)]
        if resize and not images:
            raise UsageError(
                f"--env-resize {' '.join(map(str, resize))} is not allowed: {said}, without an image, that is bytes "
                "with three axes"
            )
        self._resizing = {path: Resizing(part.shape, resize) for path, part in images if part.shape}
        parts = [(path, _resized(part, self._resizing.get(path))) for path, part in parts]
        numbers = sum(spaces.flatdim(part) for _, part in parts)
        if not 1 <= numbers <= MOST_NUMBERS:
            raise EnvironmentUnsupported(
                f"{said}, which makes {numbers:,} numbers; an observation can have from 1 to {MOST_NUMBERS:,}."
            )
        self.flat = bool(resize) or not (isinstance(observed, spaces.Box) and observed.shape)
        self._images = [path for path, part in parts if (own[path][0] or resize) and _is_image(part)]
        self._vector = [path for path, _ in parts if path not in self._images]
        vector = [part for path, part in parts if path in self._vector]
        self.hidden = [part.shape for part in vector if self.flat and part.shape and len(part.shape) > 1]
        entries: dict[str, spaces.Space[Any]] = {}
        if vector:
            flat = vector[0] if not isinstance(observed, spaces.Dict | spaces.Tuple) else spaces.Tuple(vector)
            box = spaces.flatten_space(flat) if self.flat else observed
            assert isinstance(box, spaces.Box)
            entries[VECTOR] = box if box.dtype == np.uint8 else _in_float32(box)
        self._spaces = dict(parts)
        for path in self._images:
            entries[path] = self._spaces[path]
        single: Any = next(iter(entries.values()))
        self.observation_space = single if len(entries) == 1 else spaces.Dict(entries)
        self.row = row_dtype(self.observation_space)
        self.shape: tuple[int, ...] = () if self.row.names else self.observation_space.shape or ()
        ends = np.cumsum([spaces.flatdim(part) for part in vector]).tolist()
        self._places = [
            (own[path][0], part, slice(end - spaces.flatdim(part), end))
            for path, part, end in zip(self._vector, vector, ends, strict=True)
        ]
        self._pictures = [(*own[path], path) for path in self._images]
        self._tuples = [
            (keys, len(part.spaces))
            for keys, part in _nodes(observed)
            if isinstance(part, spaces.Tuple) and any(each[: len(keys)] == keys for each, _ in own.values())
        ]

    def encode(self, observation: Any) -> NDArray[Any]:
        """Convert one observation ``[*O]`` to a new array; where it has several entries to a structured one, ``[]``.

        Several observations ``[B, *O]`` of a Box are converted at once.

        Raises:
            Unsound: a part of it is none of its space, as `_refuse_strange` says, or a Tuple has another size.
        """
        with np.errstate(all="ignore"):
            if not self.flat:
                return np.array(observation, self.row, order="C")
            for keys, size in self._tuples:
                if (given := len(_at(observation, keys))) != size:
                    raise Unsound(f"returned an observation of {given} values where its space has a Tuple of {size}")
            row = np.zeros(self.shape, self.row)
            if self._places:
                vector = row[VECTOR] if self.row.names else row
                for keys, space, place in self._places:
                    _flatten(space, _at(observation, keys), vector, place)
            for keys, space, path in self._pictures:
                value = _at(observation, keys)
                _refuse_strange(space, value)
                entry = row[path] if self.row.names else row
                entry[:] = self._image(path, value)
            return row

    def _image(self, path: str, image: Any) -> NDArray[Any]:
        resizing = self._resizing.get(path)
        return np.asarray(image) if resizing is None else resizing(image)


class Encoded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Converts the observations of one environment, and moves an action mask in them to ``info["action_mask"]``.

    `gymnasium.wrappers.FlattenObservation` takes a category that does not exist for another one, and the digits of a
    text for a number.

    Raises:
        Unsound: a part of an observation is none of its space, as `_refuse_strange` says, or a Tuple has another size.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], conversion: Conversion) -> None:
        super().__init__(env)
        self.conversion = conversion
        self.observation_space = conversion.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment, and return what it returned with the observation converted."""
        answer: Any = self.env.reset(seed=seed) if seed is not None else self.env.reset()
        return self._converted(answer, 2)

    def step(self, action: Any) -> Any:
        """Take a step, and return what the environment returned with the observation converted."""
        return self._converted(self.env.step(action), 5)

    def _converted(self, answer: Any, count: int) -> Any:
        if not isinstance(answer, tuple | list) or len(answer) != count:
            return answer  # which is refused where the number of values is looked at
        observation, *rest, info = answer
        if self.conversion.masked and isinstance(observation, Mapping) and MASK in observation:
            info = {**(info if isinstance(info, Mapping) else {}), MASK: observation[MASK]}
        try:
            return self.conversion.encode(observation), *rest, info
        except ValueError as error:
            raise Unsound(f"returned an observation that its space has not: {error}") from error


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _resized(space: spaces.Space[Any], resizing: Resizing | None) -> spaces.Space[Any]:
    """Return the space of a part of observations, after it was resized if it is."""
    return space if resizing is None else spaces.Box(0, 255, resizing.shape, np.uint8)


def _is_text(space: spaces.Space[Any]) -> bool:
    """Return whether a space has texts; some, such as MiniGrid's missions, are of a class of their own."""
    return space.dtype is not None and space.dtype.kind == "U"


def _is_mask(space: spaces.Space[Any] | None, choices: int) -> bool:
    """Return whether a space can hold a mask of this many choices."""
    if not isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete | spaces.Tuple | spaces.Dict):
        return False
    if not choices:
        return False
    if isinstance(space, spaces.Tuple | spaces.Dict):
        return sum(int(np.prod(part.shape or (1,))) for _, _, part in _parts(space)) == choices
    return int(np.prod(space.shape)) == choices


def _in_float32(box: spaces.Box) -> spaces.Box:
    with np.errstate(all="ignore"):  # a bound of float64 may be infinite in float32
        return spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32), dtype=np.float32)


def _parts(space: spaces.Space[Any], path: str = "", keys: Keys = ()) -> Iterator[Part]:
    """Iterate over the parts of a Dict or Tuple, in the order of flattening; any other space is its own part."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in named:
            yield from _parts(part, f"{path}.{key}" if path else str(key), (*keys, key))
    else:
        yield path, keys, space


def _nodes(space: spaces.Space[Any], keys: Keys = ()) -> Iterator[tuple[Keys, spaces.Space[Any]]]:
    """Iterate over a space and all that is nested in it, each with the keys that lead to it."""
    yield keys, space
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from _nodes(part, (*keys, key))


def _named(space: spaces.Space[Any]) -> Iterator[Part]:
    """Iterate over the parts of a space as `_parts`, each with a name that no other has, and no image the vector's."""
    taken = {""}
    for path, keys, part in _parts(space):
        while keys and (path in taken or (path == VECTOR and _is_image(part))):
            path += " (image)" if _is_image(part) else " (again)"
        taken.add(path)
        yield path, keys, part


def _at(value: Any, keys: Keys) -> Any:
    """Return the part of a value that keys lead to."""
    for key in keys:
        value = value[key]
    return value


def _flatten(space: spaces.Space[Any], value: Any, vector: NDArray[Any], place: slice) -> None:
    """Write the numbers of a part of an observation to its place in the zeros of a vector.

    Raises:
        Unsound: the value is none of the space.
    """
    if isinstance(space, spaces.Discrete) and isinstance(value, int | np.integer):  # the common case, and quick
        index = int(value) - int(space.start)
        if not 0 <= index < space.n:
            raise Unsound(f"returned the observation {value} where its space has {space}")
        vector[place.start + index] = 1
        return
    _refuse_strange(space, value)
    vector[place] = spaces.flatten(space, value)


def _refuse_strange(space: spaces.Space[Any], value: Any) -> None:
    """Raise `Unsound` for a part of an observation that flattening would take for another one.

    That is one of another shape, with numbers that are masked or that its dtype does not hold, or without such a
    category.
    """
    x, good = np.asarray(value), not (isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value))
    if not isinstance(space, spaces.Discrete) and x.shape != space.shape:
        raise Unsound(f"returned an observation of shape {x.shape} where its space has {space.shape}")
    if isinstance(space, spaces.Box):
        if x.dtype != space.dtype:
            good = good and np.can_cast(x.dtype, space.dtype, "same_kind")
            if good and space.dtype.kind != "f" and not np.can_cast(x.dtype, space.dtype):
                good = bool((x == x.astype(space.dtype)).all())  # else some would wrap around
    elif isinstance(space, spaces.MultiBinary):
        good = good and x.dtype.kind in "biuf" and bool(((x == 0) | (x == 1)).all())
    else:
        assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        count = choices(space)
        good = good and x.dtype.kind in "biu" and x.size == count.size
        if good:
            index = np.ravel(x).astype(np.int64) - np.ravel(space.start)
            good = bool(((index >= 0) & (index < count)).all())
    if not good:
        raise Unsound(f"returned the observation {shortened(value, show=repr)} where its space has {shortened(space)}")


class _Actions:
    """The actions of a policy for an environment's action space, and how they become those of the environment.

    Attributes:
        space: the action space of the policy.
        choices: C, the number of choices of all discrete parts together.
        decode: converts actions ``[B, *A]`` of the policy to B of the environment.

    Raises:
        EnvironmentUnsupported: policies do not support the environment's action space.
    """

    space: ActionSpace
    decode: Callable[[NDArray[Any]], Sequence[Any]]

    def __init__(self, acted: spaces.Space[Any], name: str) -> None:
        said = f"{name} has the action space {shortened(acted)}"
        parts = [part for _, _, part in _parts(acted)]
        sizes: list[int] = []
        limits: list[np.float32] = []
        places: list[tuple[bool, slice]] = []
        for part in parts:
            if isinstance(part, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
                places.append((True, slice(len(sizes), len(sizes) + len(choices(part)))))
                sizes += choices(part).tolist()
            elif isinstance(part, spaces.Box) and np.issubdtype(part.dtype, np.floating):
                if not np.prod(part.shape) or not (part.low <= part.high).all():
                    raise EnvironmentUnsupported(f"{said}; a Box needs a dimension, and bounds that are in order.")
                limit = np.where(_bounded(part), np.float32(1), np.float32(np.inf)).ravel()
                places.append((False, slice(len(limits), len(limits) + len(limit))))
                limits += limit.tolist()
            else:
                raise EnvironmentUnsupported(f"{said}; a policy can act in {ACTIONS}.")
        self.choices = sum(sizes)
        if not (sizes or limits) or min(sizes, default=1) < 1 or self.choices > MOST_CHOICES:
            raise EnvironmentUnsupported(
                f"{said}, which has {self.choices:,} choices; a policy can have from 1 to {MOST_CHOICES:,}."
            )
        high = np.array(limits, np.float32)
        numbers = spaces.Box(-high, high, dtype=np.float32)
        if isinstance(acted, spaces.Discrete):
            self.space = spaces.Discrete(sizes[0])
        elif sizes and limits:
            self.space = spaces.Tuple((spaces.MultiDiscrete(sizes), numbers))
        else:
            self.space = spaces.MultiDiscrete(sizes) if sizes else numbers
        decoders: list[Callable[[NDArray[Any]], Sequence[Any]]] = [_decoder(part) for part in parts]
        if not isinstance(acted, spaces.Dict | spaces.Tuple):
            self.decode = decoders[0]
            return
        columns = [
            place if choices else slice(len(sizes) + place.start, len(sizes) + place.stop) for choices, place in places
        ]

        def decode(action: NDArray[Any]) -> Sequence[Any]:
            decoded = [decoder(action[:, place]) for decoder, place in zip(decoders, columns, strict=True)]
            return [_nested(acted, iter([part[b] for part in decoded])) for b in range(len(action))]

        self.decode = decode


def _decoder(space: spaces.Space[Any]) -> Callable[[NDArray[Any]], Any]:
    """Return the function from actions ``[B, n]`` of the policy to those of one space, ``[B, *shape]``."""
    dtype, shape = space.dtype, space.shape or ()
    if not isinstance(space, spaces.Box):
        start = np.ravel(getattr(space, "start", 0)) if shape else getattr(space, "start", 0)
        return lambda action: (action.astype(np.int64) + start).astype(dtype).reshape(len(action), *shape)
    low, high, bounded = space.low.astype(np.float64), space.high.astype(np.float64), _bounded(space)
    # 0 in dimensions without two bounds, so that the arithmetic below stays finite.
    bottom, width = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)

    def rescale(action: NDArray[Any]) -> NDArray[Any]:
        action = action.reshape(len(action), *shape)
        inside = bottom + (action + 1.0) / 2.0 * width
        with np.errstate(all="ignore"):
            return np.clip(np.where(bounded, inside, action), low, high).astype(dtype)

    return rescale


def _bounded(box: spaces.Box) -> NDArray[np.bool_]:
    """Return which dimensions of a Box have two bounds, with a range that float64 holds."""
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    with np.errstate(all="ignore"):
        bounded: NDArray[np.bool_] = np.isfinite(low) & np.isfinite(high) & np.isfinite(high - low)
    return bounded


def _nested(space: spaces.Space[Any], parts: Iterator[Any]) -> Any:
    """Return the value of a Dict or Tuple that has these parts, in the order of `_parts`."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(part, parts) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(part, parts) for part in space.spaces)
    return next(parts)
