"""Deadlines of what is asked of environments in this process: what misses its own is interrupted, or the process ends.

An environment is interrupted by a signal, whose handler raises `Unanswered` in the main thread. Code in C that holds
the interpreter cannot be interrupted: this process then ends with exit code 3.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from time import monotonic
from types import FrameType
from typing import Any

from polyactor.errors import Command, EnvironmentUnsupported
from polyactor.system import notices
from polyactor.system.child_processes import end_noted

PATIENCE = 2.0
"""Seconds between asking a hanging environment or worker to end and killing its process."""
KNOCK = signal.SIGURG
"""The signal that interrupts the thread which steps environments. Programs ignore SIGURG unless they handle it."""
RESET_FACTOR = 5
"""The deadline of a constructor and of a reset, in deadlines of a step; those of closing and drawing are a step's."""


class Call(IntEnum):
    """What is asked of an environment, a step aside."""

    RESET = -1
    CONSTRUCTOR = -2
    CLOSE = -3
    RENDER = -4

    def __str__(self) -> str:
        """Return the name as it stands in a sentence."""
        return self.name.lower()

    @property
    def factor(self) -> int:
        """The deadline, in deadlines of a step."""
        return RESET_FACTOR if self in (Call.RESET, Call.CONSTRUCTOR) else 1


class Unanswered(EnvironmentUnsupported):
    """An environment of this process missed its deadline and was interrupted (exit code 3)."""


class _Overdue(Command):
    """As `Unanswered`, but not taken for a failure after which the environment is made anew."""


class Halted(RuntimeError):
    """The run is asked to stop, so that an environment is not asked for another step."""

    def __init__(self) -> None:
        super().__init__("a signal asked for the end")


@contextmanager
def interrupting(
    overdue: Callable[[], str | None],
    again: Callable[[], object],
    tell: Callable[[str, str], object],
    failure: Callable[[str], BaseException] = Unanswered,
    *,
    every: float,
    trusting: float,
) -> Iterator[None]:
    """Interrupt the main thread inside the with block, which it runs, when it waits for an answer too long.

    In another thread, which cannot be interrupted, a missing answer is only told.

    Args:
        overdue: returns a sentence about the environment that has missed its deadline, or None.
        again: restarts the deadline, because the environment is closed next and may hang in that, too.
        tell: called with an event, "env_hangs" or "failed", and the sentence.
        failure: makes the exception that is raised in the environment of the sentence.
        every: seconds between two looks.
        trusting: most seconds that are waited after this process has been stopped and goes on.
    """
    over, player = threading.Event(), threading.get_ident()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if (sentence := overdue()) is not None:  # checked in the thread that steps: no answer can come in between
            again()
            raise failure(sentence)

    def watch() -> None:
        knocked: float | None = None
        looked = trusted = monotonic()
        while not over.wait(every):
            gap, looked = monotonic() - looked, monotonic()
            if gap > PATIENCE:  # this process was stopped
                trusted = looked + min(gap, trusting)
            sentence = overdue() if looked >= trusted else None
            if sentence is None:
                knocked = None
            elif knocked is None:
                knocked = monotonic()
                with suppress(Exception):  # what cannot be told is done all the same
                    tell("env_hangs", sentence)
                if mine:
                    signal.pthread_kill(player, KNOCK)
            elif mine and monotonic() > knocked + PATIENCE:
                with suppress(Exception):
                    tell("failed", sentence)
                notices.to_stderr(f"{sentence}; it cannot be interrupted, so this process has ended")
                end_noted()
                os._exit(EnvironmentUnsupported.exit_code)

    # A handler that a library in C has installed before Python began could not be put back.
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(KNOCK) is not None
    before = signal.signal(KNOCK, interrupt) if mine else None
    watcher = threading.Thread(target=watch, name="polyactor-watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(PATIENCE)  # a thread that wakes while the interpreter ends would abort the process
        if mine:
            signal.signal(KNOCK, before)


class Answers:
    """Notes what is asked of the environments that are made and closed again in a `bounded` block.

    Args:
        name: the name of the environment in sentences.
        seconds: the deadline of a step.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.since: float | None = None
        self.call: Call | None = None

    def asked(self, env: int, action: Any, call: Call = Call.RESET) -> None:
        """Note that an environment is about to be asked for a step with this action, or for a call if it is None."""
        self.call = call if action is None else None
        self.since = monotonic()

    def answered(self) -> None:
        """Note that all environments have answered."""
        self.since = None

    def restart(self) -> None:
        """Restart the deadline of the call that is waited for."""
        self.since = monotonic()

    def waited(self) -> str | None:
        """Return a sentence about the call that is waited for, or None."""
        call, since = self.call, self.since
        where = "a step" if call is None else f"its {call}"
        return None if since is None else f"{self.name} has not answered for {monotonic() - since:.0f} s, in {where}"

    def overdue(self) -> str | None:
        """Return a sentence about the call that has missed its deadline, or None."""
        call, since = self.call, self.since
        most = self.seconds * (1 if call is None else call.factor)
        if since is None or monotonic() - since <= most:
            return None
        where = "a step" if call is None else f"its {call}"
        return f"{self.name} gave no answer within {most:g} s, in {where}; --env-timeout allows more"


@contextmanager
def bounded(name: str, seconds: float) -> Iterator[Answers]:
    """Bound all that is asked of environments in the with block; its value is to be told of each call and answer.

    Args:
        name: the name of the environment in sentences.
        seconds: the deadline of a step.

    Raises:
        Unanswered: a call missed its deadline.
    """
    answers, mine = Answers(name, seconds), threading.current_thread() is threading.main_thread()

    def tell(event: str, sentence: str) -> None:
        if event == "env_hangs" and (answers.call is Call.CLOSE or not mine):  # else it is the error that is raised
            notices.tell(sentence)

    def failure(sentence: str) -> BaseException:
        return Unanswered(sentence) if answers.call is Call.CLOSE else _Overdue(sentence)

    every = min(0.25, seconds / 4)
    watchdog = interrupting(answers.overdue, answers.restart, tell, failure, every=every, trusting=seconds)
    try:
        with notices.waiting(answers.waited), watchdog:
            yield answers
    except _Overdue as error:
        raise Unanswered(f"{error}.") from None
