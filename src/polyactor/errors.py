"""The exceptions of polyactor, each with the exit code of the command line.

Every error that a user can cause or mend is a :class:`PolyactorError`. Its message is one sentence that names the flag
or file, the value and what is allowed. The command line prints the sentence and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar


class PolyactorError(Exception):
    """An error that a user can cause or mend: a sentence to read and an exit code for programs."""

    exit_code: ClassVar[int] = 1


class UsageError(PolyactorError):
    """A flag, a value or a combination is not allowed, or code that a flag names is not there (exit code 2)."""

    exit_code = 2


class EnvironmentUnsupported(PolyactorError):
    """An environment is unknown, lacks a package, has unsupported spaces, or keeps failing or hanging (exit code 3).

    So is code that ``--env`` names and that is not there; other code that a flag names is a `UsageError`.
    """

    exit_code = 3


class CheckpointError(PolyactorError):
    """A checkpoint is damaged, is not polyactor's, or does not fit the run (exit code 4)."""

    exit_code = 4


class RunDirectoryError(PolyactorError):
    """A run directory is taken by another run, is damaged, or cannot be read or written (exit code 5)."""

    exit_code = 5


class Diverged(PolyactorError):
    """Training diverged: too many gradients in a row were not finite (exit code 6)."""

    exit_code = 6


class WorkerFailed(PolyactorError):
    """A worker died and the run could not go on; the message has the worker's traceback (exit code 7)."""

    exit_code = 7


class ClusterFailed(PolyactorError):
    """A Ray cluster cannot be joined, was lost, or has a node that cannot play its part (exit code 8)."""

    exit_code = 8


class OutOfResources(PolyactorError):
    """There is not enough disk space, shared memory or memory (exit code 9)."""

    exit_code = 9


@dataclass(frozen=True)
class WorkerExit:
    """The record of a worker that ended before its work was done.

    Attributes:
        worker: the number of the worker.
        error: the error to raise if the run cannot go on without the worker, with the worker's traceback.
        reason: the cause in a few words.
        ours: whether the worker raised a `PolyactorError`, which a replacement would raise again.
        raised: whether the worker raised an exception; otherwise its process was killed or ended.
        memory: whether the system killed it, as it does where memory runs out.
    """

    worker: int
    error: PolyactorError
    reason: str
    ours: bool = False
    raised: bool = False
    memory: bool = False


class Command(BaseException):
    """An exception by which polyactor ends what its own code does; it is no failure of the environment it passes."""


def shown(value: object, show: Callable[[Any], str] = str) -> str:
    """Return a user's object as text, or its class where it cannot be shown, since its methods may raise anything."""
    try:
        return show(value)
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def in_one_line(text: str) -> bool:
    """Return whether a text can be a name or a path in a setting: without a control character or the end of a line."""
    return not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text)


def one_line(text: object, most: int = 300) -> str:
    """Return foreign text, such as from a file, safe to print in a sentence: printable, in one line and not too long.

    Args:
        text: the text, or an object to convert to one.
        most: the most characters returned.
    """
    line = "".join(c if c.isprintable() else "?" for c in shown(text)[: most + 1])
    return line if len(line) <= most else f"{line[:most]}…"


def in_brief(error: BaseException) -> str:
    """Return the class of an exception and the first line of its text, in one line."""
    line = next(iter(shown(error).strip().splitlines()), "")
    return one_line(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name that is most similar, or an empty string if none is."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
