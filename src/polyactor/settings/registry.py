"""Algorithms, schemes and optimizers by name, and algorithms from files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from polyactor.algorithms import ALGORITHMS
from polyactor.algorithms.base import Algorithm
from polyactor.errors import UsageError, one_line, suggestion
from polyactor.files import code
from polyactor.optim import RULES
from polyactor.schemes import SCHEMES

PARTS: dict[str, Mapping[str, type[Any]]] = {"algorithm": ALGORITHMS, "scheme": SCHEMES, "optimizer": RULES}
"""Classes by kind of part and by name."""


def part(kind: str, name: str) -> type[Any]:
    """Return the class of a part by name; an algorithm may also be ``file.py:Class``.

    Args:
        kind: "algorithm", "scheme" or "optimizer".
        name: the part's name.

    Raises:
        UsageError: there is no such name.
    """
    known = PARTS[kind]
    if name in known:
        return known[name]
    if kind == "algorithm" and ".py:" in name:
        return _from_file(name)
    flag = "algorithm" if kind == "algorithm" else f"--{kind}"
    raise UsageError(f"{flag} {name} does not exist{suggestion(name, known)}: choose from {', '.join(known)}")


def name_of(kind: str, value: object) -> str:
    """Return the name of an algorithm, scheme or optimizer, as `part` takes it."""
    for name, known in PARTS[kind].items():
        if type(value) is known:
            return name
    module = type(value).__module__
    source = getattr(sys.modules.get(module), "__file__", None) or module  # a notebook has no file
    return f"{source}:{type(value).__qualname__}"


def _from_file(name: str) -> type[Algorithm]:
    """Import the algorithm ``file.py:Class``. Raises `UsageError` where the file or the class does not exist."""
    said = f"algorithm {one_line(name)} is not allowed"
    try:
        found = code(name)
    except ImportError as error:
        raise UsageError(f"{said}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm) and is_dataclass(found)):
        raise UsageError(f"{said}: it is not a dataclass derived from Algorithm")
    return found
