"""What an environment is made of: an id or a callable, its arguments, wrappers, and a size of images."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium

from polyactor.errors import UsageError, one_line
from polyactor.fields import expect

EnvFactory = Callable[..., "gymnasium.Env[Any, Any]"]
"""A callable that makes one environment; it is called once per environment, with its arguments by name."""

Wrapper = Callable[["gymnasium.Env[Any, Any]"], "gymnasium.Env[Any, Any]"]
"""A callable that is given an environment and returns an environment around it."""

LONGEST_ARGUMENT = 10_000
"""Most characters of one argument."""


@dataclass(frozen=True)
class Environment:
    """An environment as a run makes it, which may stand wherever an id or a callable does.

    Attributes:
        source: a Gymnasium id, ``module:name``, ``file.py:name``, or a callable that returns one environment.
        arguments: what `source` is made with, each as ``name=value``, such as ``is_slippery=False``.
        wrappers: callables from an environment to one around it, or the names of such, from the innermost outwards.
        resize: height and width that every image of the observations is resized to, in pixels; empty: as they are.
    """

    source: str | EnvFactory
    arguments: tuple[str, ...] = ()
    wrappers: tuple[str | Wrapper, ...] = ()
    resize: tuple[int, ...] = ()

    @classmethod
    def of(cls, env: str | EnvFactory | Environment) -> Environment:
        """Return an environment as it is, or one of an id or a callable without arguments and wrappers."""
        return env if isinstance(env, Environment) else cls(env)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return the arguments by name.

        Raises:
            UsageError: an argument is not of the form ``name=value``.
        """
        return parsed(self.arguments)


def parsed(arguments: Iterable[str]) -> dict[str, Any]:
    """Return arguments ``name=value`` by name; a value that is no Python literal is a text.

    Raises:
        UsageError: an argument has no name or no value, is given twice, or nearly is a literal of Python.
    """
    found: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        said = f"--env-kwargs {one_line(argument, most=80)} is not allowed"
        if not equals or not name.isidentifier() or len(argument) > LONGEST_ARGUMENT:
            raise UsageError(f"{said}: write it as name=value, such as is_slippery=False")
        if name in found:
            raise UsageError(f"{said}: {name} is given twice")
        if text in ("true", "false", "none", "null"):  # a text such as these would count as true
            value = {"true": "True", "false": "False"}.get(text, "None")
            raise UsageError(f"{said}: values are Python's, so write {name}={value}, or {name}='{text}' for the text")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[name] = text
    return found


def written(kwargs: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return arguments by name, or such texts already, as texts ``name=value`` that `parsed` reads.

    Raises:
        UsageError: a value is no number, text, bool or None, nor a list, tuple, set or dict of these.
    """
    if not isinstance(kwargs, Mapping):
        return tuple(expect("env_kwargs", kwargs, tuple[str, ...]))
    texts = []
    for name, value in kwargs.items():
        value = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value  # of NumPy
        text = f"{name}={value!r}"
        try:
            same = bool(parsed([text])[name] == value)
        except Exception:  # the user's own object may raise anything when it is compared
            same = False
        if not same:
            raise UsageError(
                f"env_kwargs {one_line(text, most=80)} is not allowed: a value is a number, a text, True, False, None, "
                "or a list, tuple or dict of these; hand over others in a function: env=functools.partial(…)"
            )
        texts.append(text)
    return tuple(texts)


def name_of(env: str | Callable[..., Any] | Environment) -> str:
    """Return the name of an environment or a wrapper for people: that of a callable is its function's or class's."""
    while isinstance(env, partial | Environment):
        env = env.func if isinstance(env, partial) else env.source
    return env if isinstance(env, str) else str(getattr(env, "__qualname__", type(env).__qualname__))
