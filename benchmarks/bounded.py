"""Beta and squashed Gaussian policies beside the Gaussian one: a file for each run in ``results/bounded/``, a table.

python benchmarks/bounded.py
python benchmarks/bounded.py --envs Pendulum-v1 --methods ppo a2c --seeds 1
python benchmarks/bounded.py --table

A run whose file is there is not made again, so this can be stopped at any time and goes on at the next call. Seeds are
the outermost loop: the first one of everything comes first. An environment whose package is not installed is left out.
The table is written to docs/continuous.md after every run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.storage.metrics_log import read_rows

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results" / "bounded", ROOT / "docs" / "continuous.md"
BEGIN, END = "<!-- begin table -->\n", "<!-- end table -->"
STEPS = 500_000
KINDS = ("gaussian", "beta", "squashed")
GAMES = 40
"""Greedy games of the last policy."""
POINTS = 50
"""Points of a curve that are kept."""

PACKAGES = {"LunarLanderContinuous-v3": "Box2D", "HalfCheetah-v5": "mujoco"}
LATE = "--algorithm.gamma 0.99"
FLAGS = {
    ("Pendulum-v1", "ppo"): "",
    ("Pendulum-v1", "a2c"): "",
    ("Pendulum-v1", "acer"): "--workers 1",
    ("LunarLanderContinuous-v3", "ppo"): LATE,
    ("LunarLanderContinuous-v3", "a2c"): LATE,
    ("HalfCheetah-v5", "ppo"): "",
    ("HalfCheetah-v5", "a2c"): "",
}
"""By environment and method: what is set beside the method's own settings; a landing pays late."""


class Cell(NamedTuple):
    """One run."""

    env: str
    method: str
    kind: str
    seed: int

    @property
    def file(self) -> Path:
        """Of its results."""
        return RESULTS / f"{self.env}-{self.method}-{self.kind}-{self.seed}.json"


def main() -> None:
    """Make the runs that are missing, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(dict.fromkeys(env for env, _ in FLAGS)))
    parser.add_argument("--methods", nargs="+", default=["ppo", "a2c", "acer"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N")
    parser.add_argument("--table", action="store_true", help="write the table of what there is, and run nothing")
    options = parser.parse_args()
    for cell in () if options.table else cells(options):
        if cell.file.exists():
            continue
        package = PACKAGES.get(cell.env)
        if package is not None and find_spec(package) is None:
            print(f"{cell.env} is left out: {package} is not installed", flush=True)
            continue
        found = run(cell)
        RESULTS.mkdir(parents=True, exist_ok=True)
        cell.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{cell.file.stem}: {found['score_mean100']:.1f}, greedy {found['greedy_mean']:.1f}", flush=True)
        write_table()
    write_table()


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Iterate over the runs that are asked for and defined."""
    for seed in range(1, options.seeds + 1):
        for env, method in itertools.product(options.envs, options.methods):
            if (env, method) in FLAGS:
                yield from (Cell(env, method, kind, seed) for kind in options.kinds)


def run(cell: Cell) -> dict[str, Any]:
    """Train in a process of its own with one thread, play greedy games, and return what is kept."""
    flags = f"--env {cell.env} {FLAGS[cell.env, cell.method]} --model.distribution {cell.kind} --seed {cell.seed}"
    command = ["train", cell.method, *flags.split(), "--steps", str(STEPS)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        subprocess.run(
            [sys.executable, "-m", "polyactor", *command, "--quiet", "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )
        summary = json.loads((out / "summary.json").read_text())
        rows = [row for row in read_rows(out / "metrics.jsonl") if row.get("score_mean100") is not None]
        config, tensors = read(out, "last")
        played = evaluate(config, tensors, games=GAMES, deterministic=True, seed=cell.seed)
    every, package = max(1, len(rows) // POINTS), PACKAGES.get(cell.env)
    return {
        **cell._asdict(),
        "command": " ".join(["polyactor", *command]),
        "agent_steps": summary["agent_steps"],
        "wall_s": summary["wall_s"],
        "score_mean100": rows[-1]["score_mean100"],
        "greedy_mean": played.mean,
        "greedy_games": len(played.scores),
        "curve": [[row["agent_steps"], round(row["score_mean100"], 2)] for row in rows[::-1][::every][::-1]],
        "cpu": summary.get("cpu"),
        "versions": summary.get("versions") | ({package: metadata.version(package)} if package else {}),
    }


def write_table() -> None:
    """Put the table of all results into the page."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [
        "| environment | method | runs of each | Gaussian | Beta | squashed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for env, method in FLAGS:
        own = {kind: [x for x in found if (x["env"], x["method"], x["kind"]) == (env, method, kind)] for kind in KINDS}
        if any(own.values()):
            counts = sorted({len(each) for each in own.values()})
            seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
            shown = " | ".join(scores(own[kind]) for kind in KINDS)
            lines.append(f"| {env} | {method} | {seeds} | {shown} |")
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


def scores(runs: list[dict[str, Any]]) -> str:
    """Return the median over the seeds of the last 100 training games, its range, and that of the greedy ones."""
    if not runs:
        return ""
    last, greedy = ([run[key] for run in runs] for key in ("score_mean100", "greedy_mean"))
    spread = f" [{min(last):,.0f} – {max(last):,.0f}]" if len(runs) > 1 else ""
    return f"{statistics.median(last):,.0f}{spread}; {statistics.median(greedy):,.0f}".replace("-", "−")


if __name__ == "__main__":
    main()
