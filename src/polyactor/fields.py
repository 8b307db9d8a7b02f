"""Settings of a configuration by dotted name: their declared types and ranges, a walk, and how to replace a value."""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, Literal, NamedTuple, TypeVar

from polyactor.errors import UsageError, one_line, suggestion

T = TypeVar("T")

SINGULAR = {"env_wrappers": "env-wrapper"}
"""Settings of several values whose flag says one: it may be given again, and each time with several."""
LARGEST = 3e38
"""The largest size of a number with a point, since tensors of float32 hold no larger ones."""
AUTO = ("workers", "envs")
"""Settings that may be ``auto``, which lets polyactor choose a number for this machine."""
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
"""Types of settings, in words for the sentences of errors."""


@dataclass(frozen=True)
class Allowed:
    """The range of a number in a configuration, put into the annotation of a field; the command line enforces it."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    """Whether the low end itself is excluded."""
    below: bool = False
    """Whether the high end itself is excluded."""

    def __contains__(self, value: float) -> bool:
        """Whether a value is a number in the range; NaN, what exceeds `LARGEST` and other types are not."""
        if not isinstance(value, Real):
            return False
        low_ok = self.low is None or (value > self.low if self.above else value >= self.low)
        high_ok = self.high is None or (value < self.high if self.below else value <= self.high)
        return abs(value) <= (LARGEST if isinstance(value, float) else sys.float_info.max) and low_ok and high_ok

    def __str__(self) -> str:
        """The range in words for the sentences of errors, such as 'a number from 0 to 1'."""
        if self.low is not None and self.high is not None:
            start = f"above {self.low} and up" if self.above else f"from {self.low}"
            return f"a number {start} {'to below' if self.below else 'to'} {self.high}"
        if self.low is not None:
            return f"a number above {self.low}" if self.above else f"a number of at least {self.low}"
        return "a finite number"


@dataclass(frozen=True)
class Group:
    """The heading under which ``--help`` shows a setting or a section, put into the annotation of a field."""

    name: str


class OneOf(tuple[str, ...]):
    """The names that are allowed as the value of a setting."""

    __slots__ = ()

    def __str__(self) -> str:
        """The names in words for the sentences of errors, such as 'one of mean, sum'."""
        return f"one of {', '.join(self)}"


class NameOrCode(OneOf):
    """The names that are allowed, and besides them code: a callable, or the name of one in a file or module."""

    __slots__ = ()

    def __contains__(self, value: object) -> bool:
        """Whether a value is one of the names, a callable, or has the form of a callable's name."""
        return callable(value) or super().__contains__(value) or is_code(value)

    def __str__(self) -> str:
        """What is allowed in words for the sentences of errors, such as 'one of none, lstm, or file.py:name'."""
        code = "code of your own, as file.py:name or module:name"
        return f"{super().__str__()}, or {code}" if self else code


def is_code(value: object) -> bool:
    """Return whether a value is a text of the form ``file.py:name`` or ``module:name``."""
    return isinstance(value, str) and all(value.rpartition(":"))


class Declared(NamedTuple):
    """The declaration of one field of a dataclass.

    Attributes:
        hint: the type of the field, without its annotations.
        allowed: the ranges and names that a value must be in.
        group: the heading of the field in ``--help``; empty where the heading of its section holds.
    """

    hint: Any
    allowed: tuple[Allowed | OneOf, ...]
    group: str


class Setting(NamedTuple):
    """One setting of a configuration and its value.

    Attributes:
        path: the dotted name, such as ``algorithm.gae_lambda``.
        value: the value.
        declared: the declaration of the field.
        group: the heading in ``--help``.
    """

    path: str
    value: Any
    declared: Declared
    group: str

    @property
    def flag(self) -> str:
        """The name of the setting on the command line, without the two dashes in front."""
        return SINGULAR.get(self.path, self.path.replace("_", "-"))

    @property
    def optional(self) -> bool:
        """Whether the value may be None."""
        return types.NoneType in typing.get_args(self.declared.hint)


_DECLARED: dict[type[Any], dict[str, Declared]] = {}


def declared(cls: type[Any]) -> dict[str, Declared]:
    """Return the declarations of a dataclass's fields, by name."""
    if cls in _DECLARED:
        return _DECLARED[cls]
    hints, found = typing.get_type_hints(cls, include_extras=True), _DECLARED.setdefault(cls, {})
    for f in fields(cls):
        extras = getattr(hints[f.name], "__metadata__", ())
        hint = typing.get_args(hints[f.name])[0] if extras else hints[f.name]
        kinds = (hint, *typing.get_args(hint))
        names = OneOf(
            name for kind in kinds if typing.get_origin(kind) is Literal for name in typing.get_args(kind)
        )  # of a Literal, or of one that may be none
        allowed = [extra for extra in extras if isinstance(extra, Allowed | OneOf)] + [names] * bool(names)
        group = next((extra.name for extra in extras if isinstance(extra, Group)), "")
        found[f.name] = Declared(hint, tuple(allowed), group)
    return found


def walk(part: Any, prefix: str = "", group: str = "") -> Iterator[Setting]:
    """Iterate over the settings of a configuration, section by section.

    A section whose value is no instance of its declared dataclass counts as one setting.

    Args:
        part: a configuration or a section of it.
        prefix: put in front of the dotted names, such as ``algorithm.``.
        group: the heading in ``--help`` of fields that declare none.
    """
    for name, field in declared(type(part)).items():
        value, own = getattr(part, name), field.group or group
        if is_dataclass(field.hint) and isinstance(value, typing.cast("type", field.hint)):
            yield from walk(value, f"{prefix}{name}.", own)
        else:
            yield Setting(prefix + name, value, field, own)


def replace_at(part: T, path: str, value: Any, *, prefix: str = "") -> T:
    """Return a copy of a configuration with the value of one setting replaced.

    Args:
        part: a configuration or a section of it.
        path: the dotted name of the setting, such as ``algorithm.gamma``.
        value: the new value.
        prefix: the dotted name of the section, for the sentence of an error.

    Raises:
        UsageError: there is no such setting.
    """
    name, dot, rest = path.partition(".")
    require(type(part), name, prefix)
    if dot:
        section = getattr(part, name)
        if not is_dataclass(section):
            raise UsageError(f"there is no setting {prefix}{path}")
        value = replace_at(section, rest, value, prefix=f"{prefix}{name}.")
    return typing.cast("T", replace(typing.cast("Any", part), **{name: value}))


def require(cls: type[Any], name: str, prefix: str = "") -> None:
    """Raise an error unless a dataclass has a field of this name.

    Raises:
        UsageError: it has no such field; the sentence suggests the nearest name.
    """
    names = [each.name for each in fields(cls)]  # and not their types, which a worker cannot look up in a file's class
    if name not in names:
        raise UsageError(f"there is no setting {prefix}{name}{suggestion(name, names)}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of the type that a field declares; numbers must be finite."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is tuple and inner:
        return isinstance(value, tuple) and all(fits(each, inner[0]) for each in value)
    if kind in (int, float):
        number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        return number or (kind is float and isinstance(value, float) and math.isfinite(value))
    try:
        return isinstance(value, kind) if isinstance(kind, type) else True
    except TypeError:  # Any, or a protocol: there is no type to be of
        return True


def converted(value: Any, hint: Any) -> Any:
    """Return a value as the type that a field declares; one that stands for no value of that type is returned as it is.

    Numbers of NumPy and torch become Python's, a float without a fraction a whole number where one is declared, lists
    and arrays with one axis tuples, and paths text. No other object is copied.
    """
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return next((new for each in inner if fits(new := converted(value, each), each)), value)
    if kind is tuple and inner and (isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1):
        return tuple(converted(each, inner[0]) for each in value)
    if kind is str and isinstance(value, PathLike):
        value = fspath(value)
    if kind in (int, float, bool) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if kind in (str, Literal) and isinstance(value, str) and type(value) is not str:
        return "".join(value)  # of a subclass, whose str() may say anything
    if isinstance(value, bool):
        return value
    if kind is int and (isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, int):
        with suppress(OverflowError):
            return float(value)
    return value


def expect(name: str, value: T, hint: Any) -> T:
    """Return an argument of a function as the type that it must have, converted as a setting is.

    Raises:
        UsageError: the value stands for none of that type; the sentence names it and what is allowed.
    """
    value = converted(value, hint)
    if not fits(value, hint):
        raise UsageError(f"{name} {one_line(value, most=80)} is not allowed: it must be {kind(hint)}")
    return value


def kind(hint: Any) -> str:
    """Describe a type in words for the sentences of errors, such as 'a whole number'."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(kind(each) for each in inner)
    if typing.get_origin(hint) is tuple:
        return f"a tuple, each {kind(inner[0])}"
    if typing.get_origin(hint) is Callable:
        return "a function"
    name = str(getattr(hint, "__name__", hint))
    return "none" if hint is types.NoneType else KINDS.get(hint, f"a{'n' * (name[:1] in 'AEIOU')} {name}")
