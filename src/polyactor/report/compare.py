"""A table that compares runs: one line per group of seeds, means with confidence intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from polyactor.config import Config, EvaluateOptions, RayOptions
from polyactor.errors import UsageError
from polyactor.system.console import Lasting

RESAMPLES = 10_000
"""Bootstrap resamples behind each confidence interval."""
FIGURES = {
    "score": "score_mean100",
    "best": "best_score_mean100",
    "reached, steps": "reached_at_steps",
    "reached, s": "reached_at_s",
    "steps/s": "steps_per_s",
}
"""Columns of the table, and the key of ``summary.json`` that each shows."""
UNLIKE = ("seed", "out", "quiet", "preset")
"""Fields of a config in which the runs of one group may differ."""
SECTIONS = {"evaluate": asdict(EvaluateOptions()), "ray": asdict(RayOptions())}
USUAL = {field.name: field.default for field in fields(Config)} | SECTIONS
"""Default of each config field. A field at its default is ignored: older runs do not have all fields."""


def compare(runs: Sequence[Path]) -> None:
    """Print a table with one line per group of runs that differ in nothing but the seed.

    Raises:
        UsageError: a directory is no run directory, or its run has not ended.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    labels: dict[str, str] = {}
    for run in runs:
        config, summary = (_read(run / name) for name in ("config.json", "summary.json"))
        label = f"{config['preset'] or config['algorithm']['name']} · {config['scheme']['name']} · {config['env']}"
        same = {k: v for k, v in config.items() if k not in UNLIKE and v != USUAL.get(k, UNLIKE)}
        key = json.dumps([label, same])
        groups.setdefault(key, []).append(summary)
        taken = label in (other for group, other in labels.items() if group != key)
        labels.setdefault(key, f"{label} ({run.resolve().parent.name})" if taken else label)
    table = Table(title="mean [95 % bootstrap interval over seeds]", title_justify="left")
    table.add_column("runs", overflow="fold")
    for column in ("seeds", *FIGURES):
        table.add_column(column)
    for key, summaries in groups.items():
        cells = [_cell([summary.get(name) for summary in summaries]) for name in FIGURES.values()]
        table.add_row(labels[key], str(len(summaries)), *cells)
    Lasting().print(table)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the mean of the values."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _cell(values: Sequence[float | None]) -> str:
    """Return one cell of the table: the mean of the known values with its interval, and how many are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    missing = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    if len(known) == 1:
        return f"{known[0]:,.4g}{missing}"
    low, high = interval(known)
    return f"{np.mean(known):,.4g} [{low:,.4g}, {high:,.4g}]{missing}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: {path.parent} is no finished run") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return found
