"""Saving the attributes of an environment, including its random stream, as JSON, and restoring them.

Only plain values are saved: numbers, text, arrays, containers of these, and random streams. Attributes that do not
change (spaces, functions, classes) are left out. Other values are refused, since a physics engine's memory, for
example, is not in its attributes. Pickle is not used, so a file cannot import or call anything.
"""

from __future__ import annotations

import base64
import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from polyactor.errors import CheckpointError, EnvironmentUnsupported

CONSTANT = (
    gymnasium.Space, EnvSpec, Enum, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType
)  # fmt: skip
"""Types of attributes that a new environment has from the start, and that are not saved."""
CONSTANTS = {"metadata", "_metadata", "_saved_kwargs", "env", "conversion"}
"""Names of attributes that Gymnasium or polyactor sets once, and that are not saved."""
CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set}
"""Container types by their names in a snapshot."""


def snapshot(owners: Sequence[Any]) -> bytes:
    """Return the attributes of objects as JSON.

    Args:
        owners: environments, their wrappers and other objects with attributes.

    Raises:
        EnvironmentUnsupported: an attribute is no plain value.
    """
    write = _Writer()
    kept = [
        {name: write(value, f"{type(owner).__name__}.{name}") for name, value in _attributes(owner)} for owner in owners
    ]
    return json.dumps(kept).encode()


def restore(owners: Sequence[Any], saved: bytes) -> None:
    """Set the attributes of objects to those that `snapshot` saved.

    Args:
        owners: objects of the same types and in the same order as those that were saved.
        saved: the bytes that `snapshot` returned.

    Raises:
        CheckpointError: the bytes are no snapshot of such objects.
    """
    try:
        kept, read = json.loads(saved), _Reader()
        if len(kept) != len(owners):
            raise ValueError(f"{len(kept)} parts for {len(owners)}")
        for owner, attributes in zip(owners, kept, strict=True):
            values = {str(name): read(value) for name, value in attributes.items()}
            if any(name.startswith("__") for name in values):
                raise ValueError("attributes with two underscores")
            vars(owner).update(values)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"the saved state of the environments is none of theirs: {error}") from None


def layers(env: Any) -> Iterator[Any]:
    """Iterate over the wrappers of an environment from the outermost inwards, and then the environment."""
    while isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        yield env
        env = env.env
    yield env


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(owner).items():
        if name not in CONSTANTS and not isinstance(value, CONSTANT):
            yield name, value


class _Writer:
    """Converts values to JSON; an object that occurs twice is written once, so that it is one object again later."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.alive: list[object] = []  # keeps objects alive, since an id may be reused after its object

    def __call__(self, value: Any, where: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if isinstance(value, np.generic):
            return {"scalar": _array(np.asarray(value), where)}
        if id(value) in self.met:
            return {"same": self.met[id(value)]}
        self.met[id(value)] = len(self.met)
        self.alive.append(value)
        if kind is np.ndarray:
            return {"array": _array(value, where)}
        if kind in CONTAINERS.values():
            return {kind.__name__: [self(each, where) for each in value]}
        if kind is deque:
            return {"deque": [self(each, where) for each in value], "longest": value.maxlen}
        if kind is dict:
            return {"dict": [[self(key, where), self(each, where)] for key, each in value.items()]}
        if isinstance(value, np.random.Generator):
            return {"generator": self(value.bit_generator.state, where)}
        if kind is np.random.RandomState:
            return {"random_state": self(value.get_state(legacy=False), where)}
        if kind is random.Random:
            return {"random": self(value.getstate(), where)}
        raise EnvironmentUnsupported(f"{where} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved")


class _Reader:
    """Converts the JSON of `_Writer` to new objects."""

    def __init__(self) -> None:
        self.met: list[Any] = []

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise ValueError("a list without its kind")
            return value
        if not value:
            raise ValueError("a value without its kind")
        kind, content = next(iter(value.items()))
        if kind == "scalar":
            return _restored(content)[()]
        if kind == "same":
            if self.met[content] is self:
                raise ValueError("a value inside itself")
            return self.met[content]
        place = len(self.met)
        self.met.append(self)  # until it is made
        made = self.met[place] = self._build(kind, content, value)
        return made

    def _build(self, kind: str, content: Any, value: dict[str, Any]) -> Any:
        if kind == "array":
            return _restored(content)
        if kind in CONTAINERS:
            return CONTAINERS[kind](self(each) for each in content)
        if kind == "deque":
            return deque((self(each) for each in content), maxlen=value["longest"])
        if kind == "dict":
            return {self(key): self(each) for key, each in content}
        state = self(content)
        if kind == "generator":
            return np.random.Generator(_bit_generator(state))
        if kind == "random_state":
            legacy = np.random.RandomState()
            legacy.set_state(state)
            return legacy
        if kind == "random":
            own = random.Random()
            own.setstate(state)
            return own
        raise ValueError(f"no such kind: {kind}")


BIT_GENERATORS = {each.__name__: each for each in (
    np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64
)}  # fmt: skip


def _bit_generator(state: dict[str, Any]) -> np.random.BitGenerator:
    made: np.random.BitGenerator = BIT_GENERATORS[state["bit_generator"]]()
    made.state = state
    return made


def _array(value: np.ndarray, where: str) -> list[Any]:
    if value.dtype.hasobject:
        raise EnvironmentUnsupported(f"{where} is an array of Python objects, which cannot be saved")
    return [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]


def _restored(saved: list[Any]) -> np.ndarray:
    dtype, shape, data = saved
    return np.frombuffer(base64.b64decode(data, validate=True), np.dtype(dtype)).reshape(shape).copy()
