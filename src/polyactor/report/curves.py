"""Learning curves: a figure of the scores of one or more runs over agent steps and over wall time."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyactor.errors import UsageError
from polyactor.fields import expect
from polyactor.storage.atomic import replace_file, writing
from polyactor.storage.metrics_log import EVENTS, ROWS, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Points = tuple[list[float], list[float]]
LineStyle = str | tuple[float, tuple[float, ...]]

COLORS = ("#1f6fb4", "#d1603d", "#2f9e6e", "#8a5fb5", "#b8860b", "#4d4d4d", "#c94f8c", "#3aa6b9")
GREY = "#555555"
LAGS: Mapping[str, tuple[str, LineStyle]] = {
    "policy_lag": ("policy lag", "-"),
    "gradient_staleness": ("gradient staleness", (0, (1.5, 1.2))),
}
"""Metrics drawn in the third panel: name and line style."""


@dataclass(frozen=True)
class RecordedRun:
    """One run as read from its run directory for the figure.

    Attributes:
        label: the run's text in the legend.
        rows: metrics rows, in the order of their agent steps.
        evaluations: rows or events with an ``evaluation_score``, each with ``agent_steps`` and ``wall_s``.
        config: the content of ``config.json``; empty if the file is missing.
    """

    label: str
    rows: Sequence[Row]
    evaluations: Sequence[Row]
    config: Mapping[str, Any]


def curve(runs: str | Path | Sequence[str | Path], out: str | Path) -> Path:
    """Draw the learning curves of runs, one line per run, and write them as a PNG.

    The left panel is over agent steps, the middle one over wall time in minutes. Lines are the mean score of the last
    100 games, diamonds evaluations, dashed lines target scores. A third panel shows policy lag and gradient staleness
    in updates; if both are 0 in every run, the panel is left out and the legend says so.

    Args:
        runs: run directories, or one of them, each with a ``metrics.jsonl``.
        out: the PNG to write, about 1600 x 640 pixels; its directory is created if missing.

    Returns:
        ``out``.

    Raises:
        UsageError: there is no run, or one has no metrics row or no finished game yet.
        RunDirectoryError, OutOfResources: a file cannot be read or written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    runs = [runs] if isinstance(runs, str | Path) else runs
    paths, out = [Path(expect("runs", run, str | Path)) for run in runs], Path(expect("out", out, str | Path))
    if not paths:
        raise UsageError("there is nothing to plot: name at least one run directory")
    found = _label([_read(path) for path in paths], paths)
    measured = {key: [lag for run in found for lag in _points(run.rows, "agent_steps", key)[1]] for key in LAGS}
    lagging = any(map(any, measured.values()))

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)  # inches
    figure = Figure(figsize=(16, 6.4), dpi=100, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3 if lagging else 2, width_ratios=[3, 3, 1.9] if lagging else [1, 1])
    largest = max(float(run.rows[-1]["agent_steps"]) for run in found)
    unit = 1e6 if largest >= 1e6 else 1.0
    _draw_scores(panels[0], found, "agent_steps", unit)
    _draw_scores(panels[1], found, "wall_s", 60.0)
    panels[0].set_xlabel("agent steps (millions)" if unit > 1 else "agent steps")
    panels[0].set_ylabel("score, mean of the last 100 games")
    panels[1].set_xlabel("wall time (minutes)")
    panels[1].sharey(panels[0])
    panels[1].tick_params(labelleft=False)
    if lagging:
        _draw_lags(panels[2], found, unit)
        panels[2].set_xlabel(panels[0].get_xlabel())
    elif any(measured.values()):
        names = ", ".join(LAGS[key][0] for key, lags in measured.items() if lags)
        panels[0].plot([], [], linestyle="none", label=f"{names}: 0 throughout")
    for panel in panels:
        _dress(panel)
    if unit == 1.0:
        for panel in (panels[0], *panels[2:]):
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            panel.xaxis.set_major_locator(_few_ticks(5 if panel is panels[0] else 3))
    handles, labels = panels[0].get_legend_handles_labels()
    columns = max(
        1, min(4, 180 // (10 + max(map(len, labels))))
    )  # as many as fit the width, with a sample of each line
    rows_needed = math.ceil(len(labels) / columns)
    figure.suptitle(_drawable(_title(found)), fontsize=17, fontweight="bold")
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=math.ceil(len(labels) / rows_needed),
        frameon=False,
        fontsize=12,
    )

    image = io.BytesIO()
    figure.savefig(image, format="png")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, image.getvalue())
    return out


# ---- reading ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> RecordedRun:
    """Read a run directory for the figure. Raises `UsageError` where it has no metrics row or no score."""
    rows = _superseded_removed([row for row in read_rows(path / ROWS) if _number(row, "agent_steps") is not None])
    if not rows:
        raise UsageError(f"{path / ROWS} {'has no rows yet' if (path / ROWS).exists() else 'does not exist'}")
    if not any(_number(row, "score_mean100") is not None for row in rows):
        raise UsageError(f"{path / ROWS} has no score yet: no game has finished")
    marked = [row for row in [*rows, *read_rows(path / EVENTS)] if _number(row, "evaluation_score") is not None]
    evaluations = [_with_wall_time(row, rows) for row in marked if _number(row, "agent_steps") is not None]
    return RecordedRun("", rows, evaluations, _config(path / "config.json"))


def _superseded_removed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with increasing agent steps: rows that a resumed run wrote again replace the older ones."""
    kept: list[Row] = []
    for row in reversed(rows):
        if not kept or row["agent_steps"] < kept[-1]["agent_steps"]:
            kept.append(row)
    return kept[::-1]


def _with_wall_time(row: Row, rows: Sequence[Row]) -> Row:
    """Return the row with a ``wall_s``, taken from the last metrics row before it if it has none."""
    if _number(row, "wall_s") is not None:
        return row
    before = [other.get("wall_s") for other in rows if other["agent_steps"] <= row["agent_steps"]]
    return {**row, "wall_s": before[-1] if before else rows[0].get("wall_s")}


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # the figure does not need it
    return config if isinstance(config, dict) else {}


def _number(row: Row, key: str) -> float | None:
    """Return the finite number under a key of a row, or None."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _points(rows: Sequence[Row], x: str, y: str, unit: float = 1.0) -> Points:
    """Return the xs, divided by `unit`, and the ys of all rows that have both."""
    pairs = [(_number(row, x), _number(row, y)) for row in rows]
    known = [(first / unit, second) for first, second in pairs if first is not None and second is not None]
    return [first for first, _ in known], [second for _, second in known]


# ---- words -----------------------------------------------------------------------------------------------------


def _name(config: Mapping[str, Any], key: str) -> str:
    """Return the text under a key of a config, or its name where it is an object; empty if there is none."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("name", value.get("id"))
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _drawable(text: str) -> str:
    """Return a text that matplotlib draws as it is: without what is no Unicode, and with no formula in it."""
    return text.encode(errors="replace").decode().replace("$", r"\$")


def _environments(runs: Sequence[RecordedRun]) -> list[str]:
    return sorted({_name(run.config, "env") for run in runs} - {""})


def _title(runs: Sequence[RecordedRun]) -> str:
    environments = _environments(runs)
    return ", ".join(environments[:3]) + (" …" if len(environments) > 3 else "") if environments else "Learning curve"


def _label(runs: Sequence[RecordedRun], paths: Sequence[Path]) -> list[RecordedRun]:
    """Return the runs with distinct labels: preset or algorithm, scheme, environment if several, seed, directory."""
    several = len(_environments(runs)) > 1
    labels = []
    for run, path in zip(runs, paths, strict=True):
        method = _name(run.config, "preset") or _name(run.config, "algorithm")
        seed = _name(run.config, "seed")
        parts = [method, _name(run.config, "scheme"), _name(run.config, "env") if several else ""]
        parts = [part for part in [*parts, f"seed {seed}" if seed else ""] if part]
        labels.append(" · ".join(parts) if method else path.resolve().name)
    folders = [path.resolve().name for path in paths]
    if len(set(folders)) < len(folders):  # such as a/seed-1 and b/seed-1
        folders = [path.resolve().parent.name for path in paths]
    return [
        replace(run, label=_drawable(label if labels.count(label) == 1 else f"{label} ({folder})"))
        for run, label, folder in zip(runs, labels, folders, strict=True)
    ]


# ---- drawing ---------------------------------------------------------------------------------------------------


def _draw_scores(panel: Axes, runs: Sequence[RecordedRun], x: str, unit: float) -> None:
    """Draw the scores, evaluations and target scores of runs over the column `x`, divided by `unit`."""
    for run, color in zip(runs, itertools.cycle(COLORS), strict=False):
        marker = "o" if len(run.rows) == 1 else None  # one row alone is no line
        points = _points(run.rows, x, "score_mean100", unit)
        panel.plot(*points, color=color, linewidth=2.4, solid_capstyle="round", marker=marker, label=run.label)
        points = _points(run.evaluations, x, "evaluation_score", unit)
        panel.scatter(*points, s=64, marker="D", color=color, edgecolors="white", linewidths=1.2, zorder=4)
    if len(runs) == 1:  # the games behind the mean; with several runs they would hide the lines
        points = _points(runs[0].rows, x, "score_last", unit)
        panel.scatter(*points, s=9, color=COLORS[0], alpha=0.25, linewidths=0)
        if points[0]:
            panel.scatter([], [], s=20, color=COLORS[0], alpha=0.5, linewidths=0, label="last game")
    if any(run.evaluations for run in runs):
        panel.scatter([], [], s=50, marker="D", color=COLORS[0] if len(runs) == 1 else GREY, label="evaluation")
    for target in sorted({score for run in runs if (score := _number(run.config, "stop_at")) is not None}):
        panel.axhline(target, color=GREY, linestyle=(0, (6, 4)), linewidth=1.4, zorder=1, label=f"stop at {target:g}")
    panel.set_xlim(left=0)


def _draw_lags(panel: Axes, runs: Sequence[RecordedRun], unit: float) -> None:
    """Draw policy lag and gradient staleness over agent steps, divided by `unit`; lags of 0 lie just above the axis."""
    highest = 0.0
    for key, (name, style) in LAGS.items():
        for run, color in zip(runs, itertools.cycle(COLORS), strict=False):
            xs, ys = _points(run.rows, "agent_steps", key, unit)
            panel.plot(xs, ys, color=color, linewidth=1, alpha=0.22)
            panel.plot(xs, _smooth(ys), color=color, linestyle=style, linewidth=2.2)
            highest = max([highest, *ys])
        panel.plot([], [], color=GREY, linestyle=style, linewidth=2.2, label=name)
    panel.set_ylabel("updates behind")
    panel.set_ylim(-0.03 * highest, 1.3 * highest)  # room for the legend
    panel.set_xlim(left=0)
    panel.legend(loc="upper left", frameon=False, fontsize=11.5)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the running mean over a twentieth of the values, over fewer near both ends."""
    half = len(values) // 40
    windows = (values[max(0, index - half) : index + half + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _few_ticks(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def _dress(panel: Axes) -> None:
    """Style the grid, spines and labels of a panel."""
    panel.grid(True, color="#e3e6ea", linewidth=1.0)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#9aa0a6")
    panel.tick_params(labelsize=12.5, color="#9aa0a6")
    panel.xaxis.label.set_fontsize(13.5)
    panel.yaxis.label.set_fontsize(13.5)
