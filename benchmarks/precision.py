"""Does a run in bf16 learn as one in fp32? Pairs of runs that differ in nothing else, then gradients side by side.

python benchmarks/precision.py catch-a3c --seeds 5
python benchmarks/precision.py pong-a3c --seeds 3
python benchmarks/precision.py --pool catch-a3c pong-fast
python benchmarks/precision.py --wire cartpole-a3c --seeds 5

In bf16 is the torso or, with ``--wire``, what gradients and parameters travel in to a server over Ray.

Pairs: every seed in both precisions, taking turns in who goes first. Compared are the steps and the seconds at which
the mean of the last 100 games was first at the target; the interval is Student's, of the logarithm of the ratio.

Gradients: one more run in fp32, as long as that of seed 1, its parameters noted at 10 points. At each of them one
rollout is collected, or several, and the loss's gradient of it taken in both precisions; nothing is remembered from
acting. Exits with 1 if any two have a cosine below 0.999.

Pool: the interval of the ratios of steps of all pairs that are kept, whatever they learned.

All of it is kept in ``results/precision-<preset>/`` or ``results/wire-<preset>/``. Runs found there are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyactor import transport
from polyactor.agent.learner import Learner
from polyactor.agent.parts import Parts
from polyactor.config import Config
from polyactor.data import Rollout
from polyactor.envs import env_spec
from polyactor.report.curves import COLORS
from polyactor.settings.presets import PRESETS, base_config
from polyactor.shared.counters import Counter
from polyactor.storage.metrics_log import read_rows
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import torch_threads, tune_allocator

RESULTS = Path(__file__).parent.parent / "results"
PRECISIONS = ("fp32", "bf16")
TORSO = ("--precision",)
OVER_RAY = ("--scheme", "param-server", "--transport", "ray", "--ray.wire")
"""The arguments that a precision is the last of."""
CURVE = ("agent_steps", "wall_s", "games", "score_mean100")
"""What is kept of every row."""

LEAST_COSINE = 0.999
ENVS = 32
"""Of the rollout that gradients are taken of."""
ROW_EVERY = 5.0
"""Seconds; a row comes with every checkpoint."""
STOPPED = 75
"""The exit code of a run that was asked to end."""
WARM_UP = 10
"""Rollouts played before it: it would else show only how games begin."""


def main() -> int:
    """Pairs, then gradients; 1 if those do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="catch-a3c", choices=list(PRESETS), metavar="preset")
    parser.add_argument("--wire", action="store_true", help="pairs over Ray that differ in --ray.wire")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N; 0: gradients alone")
    parser.add_argument("--target", type=float, help="default: the preset's own stop-at")
    parser.add_argument("--points", type=int, default=10, help="where gradients are compared; 0: pairs alone")
    parser.add_argument("--rollout", type=int, default=20, help=f"steps, in {ENVS} environments, of each comparison")
    parser.add_argument("--rollouts", type=int, default=1, help="gradients are the mean over so many")
    parser.add_argument("--pool", nargs="+", choices=list(PRESETS), metavar="PRESET", help="only pool what is kept")
    options = parser.parse_args()
    if options.pool:
        for preset in options.pool:
            if not (file := RESULTS / f"precision-{preset}" / "pairs.json").exists():
                parser.error(f"--pool {preset} is not allowed: {file} does not exist")
        pool(options.pool)
        return 0
    target = base_config(options.preset).stop_at if options.target is None else options.target
    if target is None:
        parser.error(f"{options.preset} does not stop at a score, so --target is needed")
    folder = RESULTS / f"{'wire' if options.wire else 'precision'}-{options.preset}"
    if options.seeds:
        pairs(options.preset, OVER_RAY if options.wire else TORSO, options.seeds, target, folder)
    if options.wire or not options.points:
        return 0
    first = folder / "fp32-seed-1" / "summary.json"
    if not first.exists():
        parser.error(f"{first} does not exist, and says how long to train: run with --seeds 1 or more first")
    span = json.loads(first.read_text())["agent_steps"]
    return gradients(options.preset, options.points, span, options.rollout, options.rollouts, folder)


def keep(file: Path, said: Mapping[str, Any]) -> None:
    """A JSON file with what it was measured on and how."""
    command = " ".join(["python benchmarks/precision.py", *sys.argv[1:]])
    measured = {"command": command, "cpu": cpu_name(), "versions": versions()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**said, **measured}, indent=1) + "\n")


# ---- pairs -----------------------------------------------------------------------------------------------------


def pairs(preset: str, flags: Sequence[str], seeds: int, target: float, folder: Path) -> None:
    """Run them, print and keep how they compare."""
    steps, seconds = [], []
    for seed in range(1, seeds + 1):
        order = PRECISIONS if seed % 2 else PRECISIONS[::-1]
        found = {precision: one(preset, [*flags, precision], seed, target, folder) for precision in order}
        steps.append(tuple(found[precision][0] for precision in PRECISIONS))
        seconds.append(tuple(found[precision][1] for precision in PRECISIONS))
    ratios = {"steps": ratio(steps), "seconds": ratio(seconds)}
    draw(preset, seeds, target, folder)
    keep(folder / "pairs.json", {"preset": preset, "target": target, **ratios})
    for name, said in ratios.items():
        each = ", ".join(f"{value:.3f}" for value in said["each"])
        print(f"{name} to {target:g}, bf16 / fp32: {each} ({len(said['each'])} of {seeds} pairs reached it)")
        if said["mean"] is not None:
            print(f"  geometric mean {said['mean']:.3f}, 95 % interval {said['low']:.3f} to {said['high']:.3f}")


def pool(presets: Sequence[str]) -> None:
    """Print the interval over the kept pairs of all of them."""
    each = [
        json.loads((RESULTS / f"precision-{preset}" / "pairs.json").read_text())["steps"]["each"] for preset in presets
    ]
    said = ratio([(1.0, value) for found in each for value in found])
    counts = ", ".join(f"{len(found)} of {preset}" for preset, found in zip(presets, each, strict=True))
    print(f"steps, bf16 / fp32, {counts}: geometric mean {said['mean']:.3f}, ", end="")
    print(f"95 % interval {said['low']:.3f} to {said['high']:.3f}")


def one(preset: str, flags: Sequence[str], seed: int, target: float, folder: Path) -> tuple[int | None, float | None]:
    """A run with these flags, the last of which is its precision; where it reached the target.

    Its summary and curve are kept, and a run that is kept is not repeated.
    """
    precision = flags[-1]
    kept = folder / f"{precision}-seed-{seed}"
    if (kept / "summary.json").exists():
        summary = json.loads((kept / "summary.json").read_text())
        if summary["target"] == target:
            print(f"seed {seed} {precision}: {summary['target_at_steps']} steps, as kept in {kept}", flush=True)
            return summary["target_at_steps"], summary["target_at_s"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        arguments = ["train", preset, *flags, "--seed", str(seed)]
        arguments += ["--stop-at", "none", "--checkpoint-every", str(ROW_EVERY)]
        until_reached([sys.executable, "-m", "polyactor", *arguments, "--out", str(out), "--quiet"], out, target)
        rows, summary = read_rows(out / "metrics.jsonl"), json.loads((out / "summary.json").read_text())
    steps, seconds = reached(rows, target)
    summary |= {"precision": precision, "target": target, "target_at_steps": steps, "target_at_s": seconds}
    kept.mkdir(parents=True, exist_ok=True)
    command = {"command": " ".join(["polyactor", *arguments])}
    (kept / "summary.json").write_text(json.dumps(summary | command, indent=1) + "\n")
    with open(kept / "curve.csv", "w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerows([CURVE, *([row[key] for key in CURVE] for row in rows)])
    print(f"seed {seed} {precision}: {target:g} after {steps} steps, {seconds} s ({summary['status']})", flush=True)
    return steps, seconds


def until_reached(command: Sequence[str], out: Path, target: float) -> None:
    """Run it until its rows show the target: no games are played to confirm it, since it is compared, not claimed."""
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            time.sleep(1.0)
            if (out / "metrics.jsonl").exists() and reached(read_rows(out / "metrics.jsonl"), target)[0] is not None:
                process.terminate()
                break
    finally:
        code = process.wait()
    if code not in (0, STOPPED):
        raise subprocess.CalledProcessError(code, command)


def reached(rows: Sequence[Mapping[str, Any]], target: float) -> tuple[int | None, float | None]:
    """Steps and seconds at which the mean of the last 100 games was first at the target."""
    for row in rows:
        if row["games"] >= 100 and row["score_mean100"] >= target:
            return row["agent_steps"], row["wall_s"]
    return None, None


def ratio(found: Sequence[tuple[float | None, ...]]) -> dict[str, Any]:
    """second / first of every pair that has both; their geometric mean and its 95 % interval."""
    logs = [math.log(second / first) for first, second in found if first and second]
    said: dict[str, Any] = {"each": [round(math.exp(log), 4) for log in logs], "mean": None, "low": None, "high": None}
    if len(logs) < 2:
        return said
    mean, half = statistics.fmean(logs), student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    ends = {"mean": mean, "low": mean - half, "high": mean + half}
    return said | {name: round(math.exp(value), 4) for name, value in ends.items()}


def student(freedom: int) -> float:
    """Where 95 % of |t| lies below: from draws, right to a percent."""
    draws = np.random.default_rng(0).standard_t(freedom, 1_000_000)
    return float(np.quantile(np.abs(draws), 0.95))


def draw(preset: str, seeds: int, target: float, folder: Path) -> None:
    """``curve.png``: a line per run, a colour per precision."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for seed in range(1, seeds + 1):
        for precision, color in zip(PRECISIONS, COLORS, strict=False):
            with open(folder / f"{precision}-seed-{seed}" / "curve.csv", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["score_mean100"]]
            for panel, key, unit in zip(panels, ("agent_steps", "wall_s"), (1e6, 60.0), strict=True):
                points = ([float(row[key]) / unit for row in rows], [float(row["score_mean100"]) for row in rows])
                panel.plot(*points, color=color, alpha=0.7, label=precision if seed == 1 else None)
    for panel, label in zip(panels, ("agent steps (millions)", "wall time (minutes)"), strict=True):
        panel.axhline(target, color="grey", linestyle="--", linewidth=1)
        panel.grid(alpha=0.3)
        panel.set_xlabel(label)
    panels[0].set_ylabel("score, mean of the last 100 games")
    panels[0].legend(frameon=False)
    figure.suptitle(f"{preset}, {seeds} seeds in each precision")
    figure.savefig(folder / "curve.png")


# ---- gradients -------------------------------------------------------------------------------------------------


def gradients(preset: str, points: int, span: int, rollout: int, rollouts: int, folder: Path) -> int:
    """Compare them at points of a run of `span` steps; 1 if any two point different ways."""
    config = replace(base_config(preset), precision="fp32", seed=1)
    found = compare(config, snapshots(config, points, span), rollout, rollouts)
    print(
        f"{'steps':>10} {'cosine':>10} {'length':>8}  of bf16's gradient, fp32's being 1, "
        f"on {rollouts} × {ENVS} × {rollout} steps"
    )
    for each in found:
        print(f"{each['agent_steps']:>10} {each['cosine']:>10.6f} {each['length']:>8.4f}")
    agree = all(each["cosine"] >= LEAST_COSINE for each in found)
    sample = {"envs": ENVS, "rollout": rollout, "rollouts": rollouts}
    keep(folder / f"gradients-{rollouts}x{rollout}.json", {"preset": preset, **sample, "points": found})
    print(f"{'ok' if agree else 'FAIL'}: every cosine has to be at least {LEAST_COSINE}")
    return 0 if agree else 1


def snapshots(config: Config, points: int, span: int) -> list[tuple[int, Tensor]]:
    """Train for `span` steps; steps and [θ ‖ running statistics] at so many points, evenly spread."""
    tune_allocator()
    parts = Parts.fresh(config, env_spec(config.env, atari=config.atari))
    state, counters = parts.state, parts.counters
    found: list[tuple[int, Tensor]] = []
    with closing(transport.run(parts)) as run:
        for _ in run:
            if counters.steps >= span * (len(found) + 1) / points:
                with transport.paused(config, counters):
                    found.append((counters.steps, state.vector.clone()))
                if len(found) == points:
                    break
    return found


def compare(
    config: Config, found: Sequence[tuple[int, Tensor]], rollout: int, rollouts: int = 1
) -> list[dict[str, float]]:
    """At each snapshot: cosine of both gradients of the same rollouts, and the length of bf16's ÷ that of fp32's."""
    config = replace(config, envs=ENVS, rollout=rollout, workers=1)
    parts = Parts.fresh(config, env_spec(config.env, atari=config.atari))
    state, counters = parts.state, parts.counters
    replica, actor = parts.actor(0)
    lowered = replace(parts, config=replace(config, precision="bf16")).replica()
    learners = [parts.learner(0, each) for each in (replica, lowered)]
    said = []
    with closing(actor.envs), torch_threads(1):
        for steps, vector in found:
            state.vector.copy_(vector)
            counters.table[0, Counter.STEPS] = steps  # what is annealed depends on it
            replica.pull()
            lowered.pull()
            for _ in range(WARM_UP):
                actor.collect(replica.version)
            exact = rounded = torch.zeros(())
            for _ in range(rollouts):
                same = actor.collect(replica.version).replace(memo=None)
                exact, rounded = (
                    total + gradient(learner, same) for total, learner in zip((exact, rounded), learners, strict=True)
                )
            length = float(rounded.norm() / exact.norm())
            cosine = float(torch.nn.functional.cosine_similarity(exact, rounded, dim=0))
            said.append({"agent_steps": steps, "cosine": cosine, "length": length})
    return said


def gradient(learner: Learner, rollout: Rollout) -> Tensor:
    """Of the first batch the algorithm makes of the rollout."""
    with closing(learner.gradients(rollout)) as batches:  # type: ignore[type-var]
        return next(batches).vector.double()


if __name__ == "__main__":
    sys.exit(main())
