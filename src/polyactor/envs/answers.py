"""What environments answer: a failure in words, and checks of rewards and ends."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from polyactor.errors import Command, shown
from polyactor.system.deadline import Unanswered
from polyactor.system.process_state import interruptible

PASSED = (GeneratorExit, Command)
"""Exceptions that end what is done. Any other of an environment costs its game only, also one that is no `Exception`,
such as `SystemExit`, a panic of Rust, or what asyncio cancels a task with, and `KeyboardInterrupt` where it cannot be
Ctrl-C's."""
FAILURES = (Exception, SystemExit)
"""Exceptions of a task beside training that cost only this task."""
LARGEST = float(np.finfo(np.float32).max)
"""The largest reward that is finite in float32."""
LONGEST_LINE = 200
"""Most characters of an error's first line in a sentence."""


def passed() -> tuple[type[BaseException], ...]:
    """Return `PASSED`, and `KeyboardInterrupt` where Ctrl-C raises it."""
    return (*PASSED, KeyboardInterrupt) if interruptible() else PASSED


class Unsound(Exception):
    """An environment could not be made or returned an invalid value.

    The text continues a sentence that begins with the environment's name.
    """


NOT_FINITE = "returned an observation that is not finite"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, shortened to fit a sentence."""
    lines = shown(error).strip().splitlines()
    return shortened(lines[0].rstrip("."), LONGEST_LINE) if lines else "no reason given"


def shortened(value: Any, most: int = 100, show: Callable[[Any], str] = str) -> str:
    """Return a value as text of one line with at most `most` characters."""
    text = " ".join(shown(value, show).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def description(error: BaseException) -> str:
    """Describe a failure as the rest of a sentence that begins with the environment's name."""
    if isinstance(error, Unsound):
        return str(error)
    if isinstance(error, Unanswered):
        return f"was interrupted: {error}"
    found = re.fullmatch(r"not enough values to unpack \(expected 5, got (\d)\)", shown(error))
    if found and _innermost(error).startswith("gymnasium."):  # a wrapper unpacked the values before they were checked
        return f"failed: step returned {found[1]} values where Gymnasium has 5"
    return f"raised {type(error).__name__}: {first_line(error)}"


def _innermost(error: BaseException) -> str:
    """Return the name of the module that raised an exception."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))


def number(reward: Any) -> float:
    """Convert a reward to a float, which is infinite if the reward is too large.

    Raises:
        Unsound: the reward is no single number.
    """
    try:
        if not isinstance(reward, str | bytes) and _kind(reward) in NUMERIC and getattr(reward, "shape", ()) == ():
            return float(reward)
    except (TypeError, ValueError):
        pass
    except OverflowError:
        return float("inf")
    raise Unsound(f"returned the reward {shortened(reward, show=repr)}, which is no number")


def end(name: str, value: Any) -> bool:
    """Return whether an environment's answer to `terminated` or `truncated` is true: a bool, 0 or 1, without axes.

    Raises:
        Unsound: it is anything else, such as the text "False", which Python would take for true.
    """
    with suppress(Exception):  # the user's own object may raise anything
        if _kind(value) in NUMERIC and getattr(value, "shape", ()) == () and (value == 0 or value == 1):
            return bool(value)
    raise Unsound(f"returned {name} as {shortened(value, show=repr)}, which is neither true nor false")


NUMERIC = {"b", "i", "u", "f", None}
"""Kinds of NumPy's dtypes that are numbers; None is that of other objects, such as Python's numbers or tensors."""


def _kind(value: Any) -> str | None:
    return getattr(getattr(value, "dtype", None), "kind", None)


def count(answer: Any) -> str:
    """Return how many values an answer has, in words."""
    return f"{len(answer)} values" if isinstance(answer, tuple | list) else f"a single {type(answer).__name__}"
