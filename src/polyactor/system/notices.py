"""Notices in the terminal while a command waits, so that none is silent for long and looks dead."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from polyactor.system.streams import Replacing

SILENT_FOR = 8.0
"""Seconds after the last line at which a notice is printed."""


def to_stderr(sentence: str) -> None:
    """Print a sentence to the standard error, if there is one."""
    print(f"polyactor: {sentence}", file=Replacing(sys.stderr), flush=True)  # it may be closed, or there may be none


Say = Callable[[str], object]
"""A function that prints a line."""


def unsaid(line: str) -> None:
    """Print nothing: the default of `say`."""


def _nothing_known() -> str | None:
    return None


class _Terminal:
    """What prints notices in this process, when something was printed last, and what is waited for."""

    def __init__(self) -> None:
        self.voices: list[Say | None] = []
        self.heard = self.began = monotonic()
        self.waits: list[Callable[[], str | None]] = []

    @property
    def say(self) -> Say | None:
        """What prints a sentence now, or None."""
        return self.voices[-1] if self.voices else None

    def notice(self) -> str:
        """Return a sentence about what is waited for, the newest first."""
        known = (wait() for wait in reversed(self.waits[:]))
        what = next((sentence for sentence in known if sentence is not None), None)
        return what or f"still at work, {monotonic() - self.began:.0f} s after the start"


_terminal = _Terminal()


def heard() -> None:
    """Note that something has been printed."""
    _terminal.heard = monotonic()


def hasten() -> None:
    """Ask for a notice at once."""
    _terminal.heard = float("-inf")


def tell(sentence: str) -> None:
    """Print a sentence now, where notices are printed."""
    if (say := _terminal.say) is not None:
        say(sentence)
        heard()


@contextmanager
def waiting(what: Callable[[], str | None] = _nothing_known) -> Iterator[None]:
    """Let notices inside the with block say what is waited for.

    Args:
        what: returns a sentence, or None where nothing is known; called in another thread.
    """
    _terminal.waits.append(what)
    try:
        yield
    finally:
        _terminal.waits.remove(what)


class Doing:
    """What is being done, for `waiting`: words, and for how long already.

    Args:
        words: set the attribute when something else is being done.
    """

    def __init__(self, words: str) -> None:
        self.words, self.began = words, monotonic()

    def __call__(self) -> str:
        """Return a sentence for a notice."""
        return f"{self.words}, after {monotonic() - self.began:.0f} s"


@contextmanager
def noticing(say: Say | None = to_stderr, what: Callable[[], str | None] = _nothing_known) -> Iterator[None]:
    """Print a notice inside the with block whenever nothing has been printed for `SILENT_FOR` seconds.

    Args:
        say: prints a sentence; None prints nothing.
        what: says what is waited for, as in `waiting`.
    """
    over = threading.Event()
    _terminal.voices.append(say)
    heard()

    def watch() -> None:
        while not over.wait(0.25):
            if _terminal.say is say and monotonic() - _terminal.heard > SILENT_FOR:
                tell(_terminal.notice())

    watcher = threading.Thread(target=watch, name="polyactor-notices", daemon=True)
    if say is not None:
        watcher.start()
    try:
        with waiting(what):
            yield
    finally:
        over.set()
        if say is not None:
            watcher.join()
        _terminal.voices.remove(say)
