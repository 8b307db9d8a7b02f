"""The display of a run in the terminal: a live panel, or a line every few seconds where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polyactor.config import Config
from polyactor.settings.presets import PRESETS
from polyactor.system.console import Lasting
from polyactor.system.notices import heard
from polyactor.training.stats import TROUBLES

LINE_EVERY = 7.0
"""Seconds between two progress lines where the output is no terminal; fewer than after which a notice is printed."""
MANY = 32
"""Environments whose making in the run's own process is announced, since it may take long and cannot be cut short."""
SPARKS = "▁▂▃▄▅▆▇█"


class Progress:
    """Displays the newest metrics row of a run.

    Args:
        title: the heading of the live panel.
        total_steps: agent steps of the whole run.
        quiet: whether to print nothing.
    """

    def __init__(self, title: str, total_steps: int, *, quiet: bool) -> None:
        self.title, self.total_steps, self.quiet = title, total_steps, quiet
        self.console = Lasting()
        self.live = Live(console=self.console, refresh_per_second=4) if self._on_terminal() else None
        self.curve: list[float] = []
        self.next_line = time.monotonic() + 2.0

    def _on_terminal(self) -> bool:
        return self.console.is_terminal and not self.quiet

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, message: str) -> None:
        """Print a line, which stays above the live panel."""
        if not self.quiet:
            self.console.print(message, soft_wrap=True)  # one line for programs that read it; terminals wrap it
            self.console.file.flush()
            heard()

    def show(self, row: Mapping[str, Any], *, new: bool) -> None:
        """Display a metrics row.

        Args:
            row: values by name, as in ``metrics.jsonl``.
            new: whether the row was logged; then its score joins the curve in the panel.
        """
        if new and row["score_mean100"] is not None:
            self.curve.append(row["score_mean100"])
        if self.live is not None:
            self.live.update(self._panel(row))
            heard()
        elif not self.quiet and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_EVERY
            self.console.out(self._line(row))
            heard()

    def _line(self, row: Mapping[str, Any]) -> str:
        return (
            f"{row['agent_steps']:>11,} steps  score {number(row['score_mean100'])}  games {row['games']:,}  "
            f"{row['steps_per_s']:,.0f} steps/s  left {clock(self._left(row))}  "
            f"staleness {number(row['gradient_staleness'])}"
        )

    def _left(self, row: Mapping[str, Any]) -> float | None:
        """Return the seconds left until all steps are done, or None while the speed is not known."""
        rate = row["steps_per_s"]
        return (self.total_steps - row["agent_steps"]) / rate if rate else None

    def _panel(self, row: Mapping[str, Any]) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        cells = {
            "score (last 100 games)": number(row["score_mean100"]),
            "games": f"{row['games']:,}",
            "steps/s": f"{row['steps_per_s']:,.0f}",
            "left, at most": clock(self._left(row)),
            "policy lag": number(row["policy_lag"]),
            "staleness": number(row["gradient_staleness"]),
            "entropy": number(row["entropy"]),
            **{name.replace("_", " "): f"{row[name]:,}" for name in TROUBLES if row[name]},
        }
        table.add_row(*[Text(name, style="dim") for name in cells])
        table.add_row(*[Text(value, style="bold") for value in cells.values()])
        done = row["agent_steps"]
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=self.total_steps, completed=done, width=50),
            f"{done:,} of {self.total_steps:,} steps",
            clock(row["wall_s"]),
        )
        return Group(Text(self.title, style="bold cyan"), bar, table, Text(sparkline(self.curve), style="green"))


def banner(config: Config, directory: Path, precision: str, done: int | None) -> Iterator[str]:
    """Yield the lines printed at the start of a run: its main settings, and its preset's measured result.

    Args:
        config: the run's config.
        directory: the run directory.
        precision: the number format of the convolutions, "fp32" or "bf16".
        done: agent steps that a resumed run has made already; None in a new run.
    """
    workers = f"{config.workers} worker{'s' * (config.workers > 1)} × {config.envs} environments"
    yield f"{directory}: {workers}, rollout {config.rollout}, {precision}, seed {config.seed}"
    total, here = config.workers * config.envs, config.scheme.in_threads or config.scheme.single
    if here and total >= MANY:
        yield f"making {total} environments in this process; Ctrl-C is heeded between two calls of them"
    if done is not None:
        how = "to the bit" if config.exact_resume else "environments and random streams begin anew"
        yield f"goes on from {done:,} steps: {how}"
        if done >= config.steps:
            yield f"all {config.steps:,} steps are done already: --steps N gives a larger total"
    preset = PRESETS.get(config.preset)
    if preset is not None and preset.measured and config.env == preset.env:
        yield f"to expect, as measured on two cores: {preset.measured}"


def farewell(
    status: str, config: Config, summary: Mapping[str, Any], directory: Path, skipped: Mapping[str, str]
) -> Iterator[str]:
    """Yield the lines printed at the end of a run: its score, and which files there are, and why one is not.

    Args:
        status: "done", "reached" or "callback".
        config: the run's config.
        summary: the content of ``summary.json``.
        directory: the run directory.
        skipped: the reasons of the events of `keepsakes`.
    """
    score, steps = number(summary["score_mean100"]), summary["agent_steps"]
    how = "ended by a callback" if status == "callback" else status
    yield f"{how}: score {score} after {steps:,} steps in {clock(summary['wall_s'])}"
    if not summary["games"]:
        yield no_game(config, steps)
    there = [name for name, event in (("curve", "curve_skipped"), ("film", "video_skipped")) if event not in skipped]
    there += ["checkpoints", "numbers"]
    said = {"curve_skipped": "no curve", "video_skipped": "no film", "video_cut": "the film is not a whole game"}
    lacks = "".join(f"; {said[event]}: {why}" for event, why in skipped.items())
    yield f"{', '.join(there[:-1])} and {there[-1]} are in {directory}{lacks}"


def no_game(config: Config, steps: int) -> str:
    """Return the sentence that no game has ended after this many agent steps of all workers, and what to do."""
    each = steps // (config.workers * config.envs)
    target = "" if config.stop_at is None else f", and --stop-at {config.stop_at:g} cannot be reached"
    return (
        f"no game has ended in about {each:,} steps of each environment, so there is no score{target}: "
        "--max-episode-steps N ends games after N steps"
    )


def number(value: float | None) -> str:
    """Return a number with two decimals, or a dash for None."""
    return "–" if value is None else f"{value:.2f}"


def clock(seconds: float | None) -> str:
    """Return seconds as ``h:mm:ss``, or a dash for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def sparkline(values: list[float], width: int = 60) -> str:
    """Return the newest `width` values as a string of bars, one character each."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in shown)
