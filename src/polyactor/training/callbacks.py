"""Callbacks: objects of a user's own that are told what happens in a run, and may stop it or change coefficients."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyactor.errors import UsageError, in_brief, one_line, suggestion
from polyactor.files import code, same_directory
from polyactor.settings.serialize import importable
from polyactor.storage.checkpoint import FOLDER
from polyactor.system.notices import Doing, waiting
from polyactor.training.callback_state import PREFIX, keyed, parted
from polyactor.training.run import RunHandle

if TYPE_CHECKING:
    from torch import Tensor

    from polyactor.config import Config
    from polyactor.storage.metrics_log import MetricsLog
    from polyactor.training.signals import Stop

MOST_TRACEBACK = 4_000
"""Most characters of the traceback in the event of a callback that failed: its end."""


class Callback:
    """What a run tells its callbacks; any object with some of these methods is a callback, derived from this or not.

    They are called in the run's own process, one after the other in the order given, and never at the same time. Under
    `sync`, a server or a learner training waits for them.

    One with ``state_dict()`` and ``load_state_dict(state)`` has a state in checkpoints: tensors, and values of JSON.
    """

    def on_start(self, run: RunHandle) -> None:
        """Hear that the run begins, or goes on after it was resumed; no step has been made yet."""

    def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
        """Hear of a metrics row, of which a run has 200, evenly spaced in agent steps.

        Args:
            run: the run.
            row: the values by the columns of ``metrics.jsonl``.
        """

    def on_checkpoint(self, run: RunHandle, path: Path) -> None:
        """Hear of a checkpoint that has been saved.

        Args:
            run: the run.
            path: the checkpoint directory; it is removed when newer ones take its place.
        """

    def on_evaluation(self, run: RunHandle, event: Mapping[str, Any]) -> None:
        """Hear of an evaluation: one of ``evaluate_every``, or the one that confirms a target score.

        Args:
            run: the run.
            event: as in ``events.jsonl``, with ``event`` ("evaluation" or "confirmation"), ``evaluation_score`` and
                the ``agent_steps`` of the parameters.
        """

    def on_event(self, run: RunHandle, event: Mapping[str, Any]) -> None:
        """Hear of an event.

        Args:
            run: the run.
            event: as in ``events.jsonl``: ``time``, ``event``, ``reason`` and the values of this kind of event.
        """

    def on_end(self, run: RunHandle, status: str) -> None:
        """Hear that the run is over; its files are written.

        Args:
            run: the run.
            status: "done", "reached", "callback", "stopped", or "failed" if an error ends the run.
        """


METHODS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The names of the methods of a callback."""


def written(callback: object) -> str:
    """Return a callback as a config names it: ``file.py:Class``, ``module:Class``, or ``<Class>`` of an instance.

    A file's path becomes absolute, so that the name means the same in every working directory.
    """
    if isinstance(callback, str):
        module, _, name = callback.rpartition(":")
        file = Path(module if module.endswith(".py") else f"{module}.py")
        return f"{file.absolute()}:{name}" if module.endswith(".py") or os.path.isfile(file) else callback
    return importable(callback) if isinstance(callback, type) else f"<{type(callback).__qualname__}>"


def names(callbacks: Iterable[object]) -> tuple[str, ...]:
    """Return callbacks as a config names them, without "none". Raises `UsageError` where they are no list."""
    if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
        raise UsageError(f"callbacks {one_line(callbacks, most=80)} is not allowed: it must be a list of callbacks")
    return tuple(written(each) for each in callbacks if not _nothing(each))


@same_directory()
def made(callbacks: Iterable[object]) -> tuple[object, ...]:
    """Return the callbacks of a run; a name is imported, and an instance made of a class.

    Args:
        callbacks: names, classes and instances; the name "none" stands for nothing.

    Raises:
        UsageError: there is no such file, module or class, it fails, or it has no method of a callback.
    """
    return tuple(_made(each) for each in callbacks if not _nothing(each))


def _nothing(callback: object) -> bool:
    """Return whether this is the name that stands for nothing."""
    return isinstance(callback, str) and callback == "none"


def resumed(config: Config, callbacks: Sequence[object] | None) -> tuple[Config, tuple[object, ...]]:
    """Return the config and the callbacks that a run goes on with.

    Args:
        config: the config of the checkpoint, whose code is trusted, as far as it is not replaced.
        callbacks: those that the caller names or hands over, in place of the run's own; None keeps these. The name
            "none" stands for nothing.

    Raises:
        UsageError: one cannot be imported, as in `made`.
    """
    given = config.callbacks if callbacks is None else callbacks
    return replace(config, callbacks=names(given)), made(given)


def _made(callback: object) -> object:
    """Return one callback; the arguments and errors are those of `made`."""
    said = one_line(written(callback), most=200)
    found = _found(callback, said) if isinstance(callback, str) else callback
    if isinstance(found, type):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise UsageError(f"the callback {said} cannot be made: {in_brief(error)}") from error
    if not any(_own(found, method) for method in METHODS):
        near = [name for name in dir(found) if name.startswith("on_") and name not in METHODS]
        hint = f", only {near[0]}{suggestion(near[0], METHODS)}" if near else ""
        raise UsageError(f"the callback {said} has none of {', '.join(METHODS)}{hint}")
    return found


def _found(callback: str, said: str) -> object:
    """Return the class or object that a name stands for. Raises `UsageError` where there is none."""
    try:
        return code(written(callback))
    except ImportError as error:
        raise UsageError(f"--callback {said} is not allowed: {error}") from error


def _own(callback: object, method: str) -> Callable[..., object] | None:
    """Return a method of a callback, or None where it has none of its own."""
    found = getattr(callback, method, None)
    same = getattr(type(callback), method, None) is getattr(Callback, method)
    return found if callable(found) and not same else None


class Callbacks:
    """Calls the callbacks of one run; one that raises is named in an event and left out from then on.

    Events are handed over when the run looks at its workers the next time, and not in the midst of what logged them.

    Args:
        callbacks: the callbacks, in the order in which they are called.
        run: what they are given of the run.
        log: tells the events.
        stop: asked to stop the run, as Ctrl-C does, where a callback raises KeyboardInterrupt.
    """

    def __init__(self, callbacks: Iterable[object], run: RunHandle, log: MetricsLog, stop: Stop) -> None:
        self.callbacks, self.run, self.stop = list(callbacks), run, stop
        self.keyed = keyed(self.callbacks)
        self.news = deque[dict[str, Any]]()
        if self.callbacks:
            log.listener = self.news.append

    def start(self) -> None:
        """Tell that the run begins."""
        self._call("on_start")
        self.deliver()

    def report(self, row: Mapping[str, Any], *, due: bool) -> None:
        """Tell of a metrics row; one that the clock and not agent steps asked for would make no two runs alike."""
        if due:
            self._call("on_report", row)

    def deliver(self) -> None:
        """Tell of the events since the last call; what is logged meanwhile is for the next one."""
        for event in [self.news.popleft() for _ in range(len(self.news))]:
            self._call("on_event", event)
            if event["event"] == "checkpoint_saved" and "path" in event:  # and not an event of a callback's own
                self._call("on_checkpoint", self.run.path / FOLDER / event["path"])
            elif event["event"] in ("evaluation", "confirmation"):
                self._call("on_evaluation", event)

    def end(self, status: str) -> None:
        """Tell that the run is over."""
        self.deliver()
        self._call("on_end", status)

    def states(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what callbacks keep in a checkpoint: plain values by callback, and tensors by name."""
        plain: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self.keyed:
            own = getattr(callback, "state_dict", None)
            if callable(own) and any(each is callback for each in self.callbacks):
                kept = self._told(callback, "state_dict", partial(parted, own))
                if kept is not None:
                    plain[name] = kept[0]
                    tensors |= {f"{PREFIX}.{name}/{key}": tensor for key, tensor in kept[1].items()}
        return plain, tensors

    def _call(self, method: str, *args: Any) -> None:
        """Call a method of all callbacks that have it."""
        for callback in list(self.callbacks):
            own = _own(callback, method)
            if own is not None:
                copies = [dict(each) if isinstance(each, Mapping) else each for each in args]
                self._told(callback, method, partial(own, self.run, *copies))

    def _told(self, callback: object, method: str, call: Callable[[], Any]) -> Any:
        """Call a method of a callback and return its answer; None where it raises, and it is left out from then on."""
        self.run.caller = type(callback).__qualname__
        said = f"{self.run.caller}.{method}"
        try:
            with waiting(Doing(f"waiting for the callback {said}")):
                return call()
        except KeyboardInterrupt:
            self.stop.ask()
        except BaseException as error:  # SystemExit, too: run.stop() ends a run
            self.callbacks = [each for each in self.callbacks if each is not callback]
            told = "".join(traceback.format_exception(error))[-MOST_TRACEBACK:]
            why = f"{said} raised {in_brief(error)}; {self.run.caller} is left out from now on"
            self.run.tell("callback_failed", why, agent_steps=self.run.steps, traceback=told)
