"""Saving the attributes of an environment, including its random stream, as JSON, and restoring them.

Only plain values are saved: numbers, text, arrays, members of an Enum, containers of these, and random streams. Spaces
are left out. Of functions, methods, classes and modules the names are saved, and an environment that has others is not
restored. Other values are refused, since a physics engine's memory, for example, is not in its attributes. Pickle is
not used, so a file cannot import or call anything.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum, EnumType
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from polyactor.envs.conversion import Conversion
from polyactor.errors import CheckpointError, EnvironmentUnsupported

CONSTANT = (gymnasium.Space, EnvSpec, Conversion)
"""Types of attributes that a new environment has from the start, and that are not saved."""
NAMED = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
"""Types of attributes of which only the name is saved, and must be the same where they are restored."""
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
    kept = []
    for owner in owners:
        kept.append(attributes := dict[str, Any]())
        for name, value in _attributes(owner):
            where = f"{type(owner).__name__}.{name}"
            if isinstance(value, NAMED):
                _refuse_bound(value, owners, where)
                attributes[name] = {"named": _name(value)}
            else:
                attributes[name] = write(value, where)
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
            values = dict[str, Any]()
            for name, value in attributes.items():
                if not (isinstance(value, dict) and "named" in value):
                    values[str(name)] = read(value)
                elif (found := _name(vars(owner).get(name))) != value["named"]:
                    raise ValueError(f"{type(owner).__name__}.{name} is {found} and was {value['named']}")
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
    outer = isinstance(owner, gymnasium.Wrapper | gymnasium.vector.VectorWrapper)
    recorded = isinstance(owner, gymnasium.utils.RecordConstructorArgs)
    for name, value in vars(owner).items():
        if not (isinstance(value, CONSTANT) or (outer and name == "env") or (recorded and name == "_saved_kwargs")):
            yield name, value


def _name(value: Any) -> str:
    """Return the name of a function, method, class or module, and the class of any other value, in words."""
    if not isinstance(value, NAMED):
        return f"a {type(value).__qualname__}"
    if isinstance(value, MethodType):
        return f"{_name(value.__func__)} of a {type(value.__self__).__qualname__}"
    name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value.__name__)}"
    return f"{name} ({_inside(value):x})" if isinstance(value, FunctionType) and "<" in name else name


def _inside(function: FunctionType) -> int:
    """Return a hash of what tells functions apart that are made at one place: their code and the values in it."""
    code, held = function.__code__, list[Any](function.__defaults__ or ())
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            held.append(cell.cell_contents)
    values = [each for each in (*code.co_consts, *held) if isinstance(each, bool | int | float | str | None)]
    return zlib.crc32(repr((code.co_code, code.co_names, values)).encode())


def _refuse_bound(value: Any, owners: Sequence[Any], where: str) -> None:
    """Raise `EnvironmentUnsupported` for a method of an object that is replaced where attributes are restored."""
    own = getattr(value, "__self__", None)
    if own is not None and not isinstance(own, type | ModuleType) and all(own is not each for each in owners):
        kind = type(own)
        raise EnvironmentUnsupported(
            f"{where} is a method of a {kind.__module__}.{kind.__qualname__}, which cannot be saved"
        )


def _member(module: str, path: str, name: str) -> Any:
    """Return a member of an Enum of a module that has been imported, or None where there is none.

    Nothing is imported or called for it.
    """
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found.__members__.get(name) if isinstance(found, EnumType) else None


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
        if isinstance(value, Enum):
            path = [kind.__module__, kind.__qualname__, value.name]
            if _member(*path) is not value:
                raise EnvironmentUnsupported(f"{where} is a member of {kind.__qualname__}, which no module has by name")
            return {"enum": path}
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
        if kind == "enum":
            if (member := _member(*content)) is None:
                raise ValueError(f"there is no {'.'.join(content)}")
            return member
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
