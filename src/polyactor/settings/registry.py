"""Algorithms, schemes and optimizers by name, and algorithms from files."""

from __future__ import annotations

import os.path
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from polyactor.algorithms import ALGORITHMS
from polyactor.algorithms.base import Algorithm
from polyactor.errors import UsageError, suggestion
from polyactor.files import load_file
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
    path, _, class_name = name.rpartition(":")
    file = Path(path)
    if not os.path.isfile(file):
        raise UsageError(f"algorithm {name} does not exist: there is no file {path}")
    try:
        module = load_file(file)
    except SystemExit as end:  # a script that parses arguments, or ends, where it is imported
        raise UsageError(f"algorithm {name} does not exist: {path} ended with {end} when it was imported") from end
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Algorithm) and is_dataclass(found)):
        known = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Algorithm)]
        raise UsageError(f"algorithm {name} is not a dataclass derived from Algorithm{suggestion(class_name, known)}")
    return found
