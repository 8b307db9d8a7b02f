"""Is this source tree as fast as another? Both train in turn, and the ratio of their speeds is what is compared.

git worktree add ../before HEAD~10
python benchmarks/pairs.py ../before/src src --pairs 9
python benchmarks/pairs.py ../before/src src --cases pong-ppo cartpole-a2c

Each measurement is a process of its own that imports polyactor from the tree it is given and trains for some seconds
after start-up; which tree goes first alternates. A machine's speed drifts by more than two trees differ, so only the
ratios within a pair are compared. The interval is a bootstrap of their median.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pong-a3c-bf16": ("a3c", "PongNoFrameskip-v4", {"precision": "bf16"}),
    "pong-a3c-fp32": ("a3c", "PongNoFrameskip-v4", {"precision": "fp32"}),
    "pong-ppo": ("ppo", "PongNoFrameskip-v4", {"precision": "bf16"}),
    "cartpole-a2c": ("a2c", "CartPole-v1", {}),
    "pong-acer": ("acer", "PongNoFrameskip-v4", {"precision": "bf16"}),
}
"""By name: the method, the environment, and the config's values that are pinned."""


def measure(case: str, seconds: float) -> float:
    """Train in this process with the polyactor that is imported; gives steps per second."""
    try:
        from polyactor.envs import env_spec
        from polyactor.report.speed import training_rate
        from polyactor.settings.presets import base_config
        from polyactor.system.machine import tune_allocator
    except ImportError:  # trees from before modules had folders
        from polyactor.bench import training_rate  # type: ignore[import-not-found, no-redef]
        from polyactor.machine import tune_allocator  # type: ignore[import-not-found, no-redef]
        from polyactor.presets import base_config  # type: ignore[import-not-found, no-redef]

        env_spec = None  # type: ignore[assignment]
    tune_allocator()
    method, env, values = CASES[case]
    config = base_config(method, env=env)
    config = replace(config, workers=1 if config.scheme.single else 2, stop_at=None, **values)
    if method == "acer":
        config = replace(config, algorithm=replace(config.algorithm, replay_capacity=20_000))  # type: ignore[call-arg]
    if env_spec is None:
        return float(training_rate(config, seconds).rate)  # type: ignore[call-arg, arg-type]
    return float(training_rate(config, env_spec(config.env, atari=config.atari), seconds).rate)


def rate(tree: Path, case: str, seconds: float) -> float:
    """`measure` in a process that imports polyactor from a tree."""
    found = subprocess.run(
        [sys.executable, __file__, "--measure", case, "--seconds", str(seconds)],
        env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        sys.exit(f"{tree}: {case} failed: {found.stderr[-2000:]}")
    return float(json.loads(found.stdout.splitlines()[-1]))


def interval(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """A bootstrap's 95 % interval of the median."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 40], medians[-draws // 40 - 1]


def main() -> None:
    """Measure every case in pairs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="folder that holds the package polyactor")
    parser.add_argument("after", nargs="?", type=Path, help="another one")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, after start-up")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seconds)))
        return
    if options.before is None or options.after is None:
        parser.error("name two folders that hold the package polyactor")
    trees = [options.before.resolve(), options.after.resolve()]
    for case in options.cases:
        rates: dict[Path, list[float]] = {tree: [] for tree in trees}
        for n in range(options.pairs):
            for tree in trees if n % 2 == 0 else reversed(trees):
                rates[tree].append(rate(tree, case, options.seconds))
        before, after = (rates[tree] for tree in trees)
        ratios = [new / old for old, new in zip(before, after, strict=True)]
        low, high = interval(ratios)
        print(
            f"{case:14} before {statistics.median(before):8,.0f}  after {statistics.median(after):8,.0f} steps/s  "
            f"ratio {statistics.median(ratios):.3f} [{low:.3f}–{high:.3f}] of {options.pairs} pairs",
            flush=True,
        )


if __name__ == "__main__":
    main()
