"""Learning results with seeds: run a preset several times, keep each summary in ``results/``, print a table.

python benchmarks/learning.py cartpole-a3c --seeds 5 --target 475
python benchmarks/learning.py tmaze-a3c-lstm --seeds 1 --games 2000
python benchmarks/learning.py tmaze-a3c-lstm --seeds 1 --games 2000 --name tmaze-a3c --flags --model.core none
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.storage.metrics_log import read_rows

RESULTS = Path(__file__).parent.parent / "results"


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, default=3, help="how many, one run each, one after the other")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--target", type=float, help="report when the mean of the last 100 games first reached this")
    parser.add_argument("--games", type=int, help="play so many games with the final policy, sampled")
    parser.add_argument("--name", help="folder in results/; default the preset")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="the rest goes to polyactor train")
    options = parser.parse_args()
    folder = RESULTS / (options.name or options.preset)
    found = [
        one(options, seed, folder / f"seed-{seed}") for seed in range(options.first, options.first + options.seeds)
    ]
    for key in ("target_at_steps", "target_at_s", "outside_wall_s", "best_score_mean100", "evaluation_mean"):
        values = [summary[key] for summary in found if summary.get(key) is not None]
        if values:
            spread = f"[{min(values):,.2f} – {max(values):,.2f}]"
            print(f"{key:20} median {statistics.median(values):>12,.2f} {spread}  {len(values)} of {len(found)} seeds")


def one(options: argparse.Namespace, seed: int, kept: Path) -> dict[str, float]:
    """One run; its summary, extended, goes to `kept`."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "polyactor", "train", options.preset, "--seed", str(seed), "--out", str(out)]
        start = time.perf_counter()
        subprocess.run([*command, "--quiet", *options.flags], check=True)
        summary = json.loads((out / "summary.json").read_text())
        summary["outside_wall_s"] = round(time.perf_counter() - start, 1)
        summary["command"] = " ".join(["polyactor train", options.preset, "--seed", str(seed), *options.flags])
        if options.target is not None:
            rows = read_rows(out / "metrics.jsonl")
            row = next((r for r in rows if r["games"] >= 100 and r["score_mean100"] >= options.target), {})
            summary |= {"target": options.target}
            summary |= {"target_at_steps": row.get("agent_steps"), "target_at_s": row.get("wall_s")}
        if options.games is not None:
            config, tensors = read(out, "last", trust_code=True)
            played = evaluate(config, tensors, games=options.games, deterministic=False, seed=seed)
            summary |= {"evaluation_mean": played.mean, "evaluation_games": len(played.scores)}
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        config_json = json.loads((out / "config.json").read_text()) | {"out": None}  # the scratch folder is gone
        (kept / "config.json").write_text(json.dumps(config_json, indent=1) + "\n")
        for name in ("metrics.jsonl", "curve.png"):
            shutil.copy(out / name, kept / name)
    shown = {
        key: summary.get(key) for key in ("status", "agent_steps", "target_at_steps", "target_at_s", "evaluation_mean")
    }
    print(f"seed {seed}: {shown}", flush=True)
    return summary


if __name__ == "__main__":
    main()
