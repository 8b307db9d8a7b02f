"""A config as plain JSON and back; a config that is read is checked and runs no code."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium

from polyactor import envs
from polyactor.algorithms import ALGORITHMS
from polyactor.algorithms.base import Algorithm
from polyactor.config import OBJECTS, Config, EvaluateOptions, Normalize, RayOptions
from polyactor.envs import AtariOptions
from polyactor.errors import CheckpointError, UsageError, in_one_line, one_line
from polyactor.fields import declared, fits, require, walk
from polyactor.models.spec import CODE, ModelSpec
from polyactor.settings.check import check_values
from polyactor.settings.registry import PARTS, name_of, part

SECTIONS: dict[str, type[Any]] = {
    "model": ModelSpec, "normalize": Normalize, "atari": AtariOptions, "evaluate": EvaluateOptions, "ray": RayOptions
}  # fmt: skip
"""Sections of a config that have one type in each run."""


MOST_PIXELS = 1 << 24
"""Most pixels of an observation that a checkpoint's config may ask for: 600 times Atari's."""


LONGEST_NAME = 4_400
"""Most characters of an environment's name: of a path that Linux opens, and of a callable in it."""


@dataclass(frozen=True)
class StandIn(Algorithm):
    """A placeholder for an algorithm from a file, whose code a config does not hold: enough to play, not to train."""


@dataclass(frozen=True)
class StandInWithQ(StandIn):
    """A placeholder for an algorithm from a file whose critic estimates Q."""

    outputs: ClassVar[tuple[str, ...]] = ("policy", "q")


STAND_INS = (StandIn, StandInWithQ)


def to_json(config: Config) -> dict[str, Any]:
    """Return a config as plain JSON; each part has its name, and an algorithm from a file its model heads."""
    plain = _plain(config)
    for kind in PARTS:
        plain[kind] = {"name": name_of(kind, getattr(config, kind)), **plain[kind]}
    if type(config.algorithm) not in ALGORITHMS.values():
        plain["algorithm"]["outputs"] = list(config.algorithm.outputs)
    plain["model"] |= {name: importable(value) for name, value in config.model.own.items()}
    for name in OBJECTS:
        value = getattr(config, name)
        plain[name] = [importable(each) for each in value] if isinstance(value, tuple) else importable(value)
    return plain


def _plain(part: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, those of its sections too. Values are not copied: not all can be."""
    values = {each.name: getattr(part, each.name) for each in dataclasses.fields(part)}
    return {name: _plain(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def importable(value: Any) -> str:
    """Return the name that a callable can be imported by, or its own name in angle brackets where there is none.

    A text is returned as it is.
    """
    if isinstance(value, str):
        return value
    module, name = str(getattr(value, "__module__", "")), envs.name_of(value)
    if name in gymnasium.wrappers.__all__ and getattr(gymnasium.wrappers, name) is value:
        return f"gymnasium.wrappers:{name}"
    home = sys.modules.get(module)
    if home is None or getattr(home, name, None) is not value:
        return f"{module}:<{name.strip('<>')}>"
    file = getattr(home, "__file__", None)
    own = module == "__main__" or module.startswith("polyactor_file_")  # which no other program imports by its name
    return f"{file if own else module}:{name}" if file or not own else f"{module}:<{name}>"


def refuse_unwritable(config: Config) -> None:
    """Refuse a config that could not be saved with a checkpoint, or not be read again.

    Raises:
        UsageError: a value is not plain; only an algorithm of one's own can have such a setting.
    """
    named = (*OBJECTS, *(f"model.{part}" for part in CODE))
    for setting in walk(config):
        try:
            json.dumps(None if setting.path in named else setting.value, allow_nan=False)
        except (TypeError, ValueError) as error:
            said = one_line(setting.value, most=80)
            raise UsageError(f"--{setting.flag} {said} is not allowed: it cannot be saved as JSON: {error}") from None


def from_json(plain: Mapping[str, Any]) -> Config:
    """Return the config that `to_json` wrote, perhaps on somebody else's machine.

    No code is imported: an algorithm from a file becomes a `StandIn`, which is enough to play with the policy and not
    to train on. What uses other code that the config names asks `refuse_untrusted` first.

    Raises:
        CheckpointError: the JSON is no config, or names something that this version does not have.
    """
    try:
        config = _from_json(dict(plain))
        check_values(config)
        for name in (config.env, *config.env_wrappers, *config.callbacks, *config.model.own.values()):
            if not in_one_line(str(name)) or len(str(name)) > LONGEST_NAME:
                raise ValueError(f"the environment, a wrapper, a callback or a part of the network is {name}")
        pixels = config.atari.stack * config.atari.frame_size * (config.atari.resize_height or config.atari.frame_size)
        if pixels > MOST_PIXELS:
            raise ValueError(f"observations of {pixels} pixels")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError) as error:
        why = one_line(error) or type(error).__name__
        raise CheckpointError(f"the config is not one of this version's: {why}") from None
    return config


def algorithm_from(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Return an algorithm from a file with the values of a checkpoint; only its model heads come from the file.

    Args:
        name: ``file.py:Class``.
        options: the algorithm's values by field.

    Raises:
        UsageError: there is no such algorithm.
        CheckpointError: the algorithm has no such fields, or a value has the wrong type.
    """
    cls = part("algorithm", name)
    try:
        return typing.cast("Algorithm", _instance(cls, {k: v for k, v in options.items() if k != "outputs"}))
    except (TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"the config does not fit the algorithm {name}: {error}") from None


def _from_json(values: dict[str, Any]) -> Config:
    """Return the config of plain JSON. Raises built-in errors where a field is missing or has the wrong type."""
    for kind, known in PARTS.items():
        options = dict(values[kind])
        name = options.pop("name")
        if kind == "algorithm" and (".py:" in name or (name not in known and "outputs" in options)):
            values[kind] = _stand_in(options.get("outputs", list(Algorithm.outputs)))
            continue
        if name not in known:
            raise CheckpointError(
                f"the config names {kind} {one_line(repr(name))}, which is none of {', '.join(known)}"
            )
        values[kind] = _instance(known[name], options)
    values = {"evaluate": {}, "ray": {}} | values  # older runs have none
    values["model"] = {"channels": "last-up-to-4"} | dict(values["model"])  # of a run of before it could be set
    for section, cls in SECTIONS.items():
        values[section] = _instance(cls, values[section])
    return typing.cast("Config", _instance(Config, values))


def _stand_in(outputs: object) -> Algorithm:
    """Return the placeholder for an algorithm with these model heads. Raises `ValueError` where there is none."""
    for cls in STAND_INS:
        if list(cls.outputs) == outputs:
            return cls()
    raise ValueError(f"an algorithm's outputs are {one_line(repr(outputs), most=80)}")


def _instance(cls: type[Any], options: Mapping[str, Any]) -> Any:
    """Return an instance of a dataclass with these values. Raises `ValueError` where a value has the wrong type."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    for name, value in given.items():
        require(cls, name)
        hint = declared(cls)[name].hint
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):  # a section of an algorithm of one's own
            given[name] = _instance(typing.cast("type", hint), value)
        elif not fits(value, hint):
            raise ValueError(f"{name} is {repr(value)[:80]}")
    return cls(**given)
