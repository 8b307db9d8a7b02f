"""What can go wrong, and the exit code that says so.

Every error a person can cause or mend is a :class:`PolyactorError`: one sentence that names the flag or
file, the value and what is allowed. The command line prints the sentence and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


class PolyactorError(Exception):
    """An error with a sentence for a person and an exit code for a program."""

    exit_code: ClassVar[int] = 1


class UsageError(PolyactorError):
    """A flag, a value or a pairing that cannot be (exit code 2)."""

    exit_code = 2


class EnvironmentUnsupported(PolyactorError):
    """An unknown environment, a space nobody can act in, a missing extra, one that keeps failing (exit code 3)."""

    exit_code = 3


class CheckpointError(PolyactorError):
    """A checkpoint that is damaged, foreign or does not fit (exit code 4)."""

    exit_code = 4


class RunDirectoryError(PolyactorError):
    """A run directory that is taken or cannot be written (exit code 5)."""

    exit_code = 5


class Diverged(PolyactorError):
    """Numbers stopped being finite (exit code 6)."""

    exit_code = 6


class WorkerFailed(PolyactorError):
    """A worker died and the run could not go on; carries the worker's own traceback (exit code 7)."""

    exit_code = 7


class OutOfResources(PolyactorError):
    """Not enough disk, shared memory or memory (exit code 9)."""

    exit_code = 9


@dataclass(frozen=True)
class WorkerExit:
    """A worker that ended before its work was done.

    Attributes:
        worker: which.
        error: what to raise where the run cannot go on without it; its sentence has the worker's own traceback.
        reason: in a few words.
        ours: an error of polyactor's, whose sentence is for whoever started the run: it would come again.
        raised: it was an exception, and not the process that ended.
    """

    worker: int
    error: PolyactorError
    reason: str
    ours: bool = False
    raised: bool = False


def one_line(text: object, most: int = 300) -> str:
    """What a file says, as part of a sentence: nothing that moves a cursor, and not too much of it."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return line if len(line) <= most else f"{line[:most]}…"


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
