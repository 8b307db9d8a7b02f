"""Names to parts and back: algorithm × scheme × optimizer, as flags, as JSON, and as the config of a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from polyactor.algorithms import ALGORITHMS
from polyactor.config import Config, Normalize
from polyactor.envs import AtariOptions
from polyactor.errors import CheckpointError, UsageError, suggestion
from polyactor.models.spec import ModelSpec
from polyactor.optim.rules import RULES
from polyactor.schemes import SCHEMES
from polyactor.types import Algorithm

PARTS: dict[str, Mapping[str, type[Any]]] = {"algorithm": ALGORITHMS, "scheme": SCHEMES, "optimizer": RULES}
"""The parts a person picks by name."""
SECTIONS: dict[str, type[Any]] = {"model": ModelSpec, "normalize": Normalize, "atari": AtariOptions}
"""The parts every run has one kind of."""


def part(kind: str, name: str) -> type[Any]:
    """The class a name stands for; an algorithm may also be ``file.py:Class``.

    Raises:
        UsageError: no such name.
    """
    known = PARTS[kind]
    if name in known:
        return known[name]
    if kind == "algorithm" and ".py:" in name:
        return _from_file(name)
    flag = "algorithm" if kind == "algorithm" else f"--{kind}"
    raise UsageError(f"{flag} {name} does not exist{suggestion(name, known)}: choose from {', '.join(known)}")


def name_of(kind: str, value: object) -> str:
    """The name of a part, as `part` takes it."""
    for name, known in PARTS[kind].items():
        if type(value) is known:
            return name
    source = getattr(sys.modules.get(type(value).__module__), "__file__", None)
    return f"{source}:{type(value).__qualname__}"


def to_json(config: Config) -> dict[str, Any]:
    """Plain JSON; parts carry their name."""
    plain = dataclasses.asdict(config)
    for kind in PARTS:
        plain[kind] = {"name": name_of(kind, getattr(config, kind)), **plain[kind]}
    if not isinstance(config.env, str):
        plain["env"] = f"{config.env.__module__}:{getattr(config.env, '__qualname__', type(config.env).__name__)}"
    return plain


def from_json(plain: Mapping[str, Any]) -> Config:
    """The config `to_json` wrote.

    A config is data and imports no code: an algorithm from a file becomes the abstract `Algorithm`, which is enough to
    play with the policy and not to train on.

    Raises:
        CheckpointError: it is not one, or names something this version does not have.
    """
    values = dict(plain)
    try:
        for kind, known in PARTS.items():
            options = dict(values[kind])
            name = options.pop("name")
            if kind == "algorithm" and ".py:" in name:
                values[kind] = Algorithm()
                continue
            if name not in known:
                raise CheckpointError(f"the config names {kind} {name!r}, which is none of {', '.join(known)}")
            values[kind] = _instance(known[name], options)
        for section, cls in SECTIONS.items():
            values[section] = _instance(cls, values[section])
        return typing.cast("Config", _instance(Config, values))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the config is not one of this version's: {error}") from None


def _instance(cls: type[Any], options: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(cls)}
    unknown = set(options) - known
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def _from_file(name: str) -> type[Algorithm]:
    path, _, class_name = name.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"algorithm {name} does not exist: there is no file {path}")
    module_name = file.stem
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"algorithm {name} does not exist: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up here
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # workers cannot import it by name
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Algorithm) and is_dataclass(found)):
        known = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Algorithm)]
        raise UsageError(f"algorithm {name} is not a dataclass derived from Algorithm{suggestion(class_name, known)}")
    return found
