"""Steps to a score for every algorithm under every scheme, a table and one JSON file in ``results/``.

python benchmarks/schemes.py --env CartPole-v1 --target 450 --steps 400000 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.algorithms import ALGORITHMS
from polyactor.config import Config
from polyactor.envs import env_spec
from polyactor.schemes import SCHEMES
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import tune_allocator

RESULTS = Path(__file__).parent.parent / "results"


def main() -> None:
    """Every cell, every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--target", type=float, default=450.0)
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N")
    options = parser.parse_args()
    tune_allocator()
    found: list[dict[str, Any]] = []
    for algorithm in ALGORITHMS:
        for scheme in SCHEMES:
            config = cell(algorithm, scheme, options.env, options.steps)
            check(config)
            runs = [one(replace(config, seed=seed), options.target) for seed in range(1, options.seeds + 1)]
            found += runs
            steps = [run["target_at_steps"] for run in runs if run["target_at_steps"] is not None]
            seconds = [run["target_at_s"] for run in runs if run["target_at_s"] is not None]
            spread = f"{statistics.median(steps):,.0f} [{min(steps):,} – {max(steps):,}]" if steps else "never"
            seconds_shown = f"{statistics.median(seconds):.1f} s" if seconds else ""
            print(f"{algorithm:8} {scheme:14} {len(steps)} of {len(runs)}  {spread}  {seconds_shown}", flush=True)
    file = RESULTS / f"schemes-{options.env}.json"
    said = {"env": options.env, "target": options.target, "steps": options.steps, "cpu": cpu_name()}
    file.write_text(json.dumps(said | {"versions": versions(), "runs": found}, indent=1) + "\n")
    print(file)


def cell(algorithm: str, scheme: str, env: str, steps: int) -> Config:
    """The method's own settings, with one step size for all; actors that share a batch have half the environments."""
    config = base_config(algorithm, env=env, scheme=scheme)
    workers = 1 if config.scheme.single else 2
    envs = config.envs // workers if scheme == "actor-learner" else config.envs
    optimizer = replace(config.optimizer, lr=1e-3)
    return replace(config, steps=steps, workers=workers, envs=envs, optimizer=optimizer)


def one(config: Config, target: float) -> dict[str, Any]:
    """Until the mean of the last 100 games reaches the target, or the steps are over."""
    parts = Parts.fresh(config, env_spec(config.env, atari=config.atari))
    counters = parts.counters
    scores: deque[float] = deque(maxlen=100)
    start, best, reached = time.perf_counter(), -float("inf"), False
    run = transport.run(parts)
    for _ in run:
        for game in counters.new_games():
            scores.append(game.score)
            if len(scores) == scores.maxlen:
                best = max(best, statistics.fmean(scores))
        reached = best >= target
        if reached:
            break
    steps, seconds = counters.steps, round(time.perf_counter() - start, 1)
    run.close()
    return {
        "algorithm": config.preset,
        "scheme": config.scheme.name,
        "seed": config.seed,
        "workers": config.workers,
        "envs": config.envs,
        "best_score_mean100": round(best, 2),
        "agent_steps": steps,
        "wall_s": seconds,
        "target_at_steps": steps if reached else None,
        "target_at_s": seconds if reached else None,
    }


if __name__ == "__main__":
    main()
