"""A run as others see it: `Run`, one that has ended, and `RunHandle`, one that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polyactor.errors import one_line
from polyactor.fields import expect
from polyactor.settings.changing import changed

if TYPE_CHECKING:
    from polyactor.agent.parts import Parts
    from polyactor.config import Config
    from polyactor.training.events import Events
    from polyactor.training.stats import Stats


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run directory.
        status: "done", "reached" (the target score), "callback" (one asked for the end) or "stopped" (by a signal).
        summary: the content of ``summary.json``.
    """

    path: Path
    status: str
    summary: Mapping[str, Any]


class RunHandle:
    """A run that goes on, as its callbacks see it.

    Args:
        parts: the run's parts.
        path: the run directory.
        stats: the run's statistics.
        events: logs and prints events.

    Attributes:
        path: the run directory.
        spec: what the environments look like: spaces and limits.
        config: the run's config, with the settings that have been changed since it began.
        caller: the name of the callback that is being called.
        asked: the sentence that a callback asked the run to end, and why; empty before.
    """

    def __init__(self, parts: Parts, path: Path, stats: Stats, events: Events) -> None:
        self.path, self.spec = path, parts.spec
        self.caller, self.asked = "a callback", ""
        self._given, self._counters, self._stats, self._events = parts.config, parts.counters, stats, events
        self.config = changed(parts.config, self._counters.changes.made())

    @property
    def steps(self) -> int:
        """Agent steps so far, of all workers together."""
        return self._counters.steps

    @property
    def row(self) -> dict[str, Any]:
        """The numbers of this moment, by the columns of ``metrics.jsonl``; ``rss_mb`` is None."""
        return self._stats.row()

    def tell(self, event: str, reason: str = "", **fields: Any) -> None:
        """Log an event of one's own; it is printed as well if it has a reason and is among the first of its name.

        Args:
            event: its name, such as "entropy_lowered".
            reason: a few words.
            fields: further values by name.
        """
        self._events.tell(event, reason, **fields)

    def stop(self, reason: str) -> None:
        """End the run as if all its steps were done: it is saved, with the status "callback".

        Args:
            reason: a few words, for the event ``stopping``.
        """
        reason = one_line(expect("reason", reason, str))
        self.asked = self.asked or f"the callback {self.caller} asked for the end: {reason}"

    def set(self, path: str, value: float | None) -> None:
        """Change a number of the algorithm or the optimizer for all workers, from their next rollout or update on.

        Of a coefficient that is annealed this is the value at the start of the schedule, as the flag is. The change is
        an event, and a resumed run goes on with it.

        Args:
            path: the dotted name of the setting, such as ``algorithm.entropy_coef`` or ``optimizer.lr``.
            value: the new value; None where the setting may be none.

        Raises:
            UsageError: there is no such setting, it cannot be changed during a run, or the value is not allowed.
        """
        path = expect("path", path, str).replace("-", "_")
        made = self._counters.changes.made()
        config, at = changed(self._given, made | {path: value}), attrgetter(path)
        before, now = at(self.config), at(config)
        if before == now and (path in made or not self._given.per_worker):
            return
        self._counters.changes.put(made | {path: now})
        self.config, annealed = config, self._annealed(config, path)
        here = "" if annealed == now else f", annealed to {as_written(annealed)} at this step"
        self.tell(
            "setting_changed",
            f"{self.caller} changes --{path.replace('_', '-')} from {as_written(before)} to {as_written(now)}{here}",
            path=path,
            value=now,
            before=before,
            agent_steps=self.steps,
        )

    def _annealed(self, config: Config, path: str) -> float | None:
        """Return the value that a setting has at this step of its schedule."""
        progress = self.steps / config.steps
        if path == "optimizer.lr":
            return config.optimizer.lr_at(progress)
        now = replace(config, algorithm=config.algorithm.at(progress))
        return cast("float | None", attrgetter(path)(now))


def as_written(value: float | None) -> str:
    """Return a value of a setting as people write it."""
    return "none" if value is None else f"{value:.6g}"
