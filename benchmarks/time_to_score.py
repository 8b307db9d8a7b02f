"""Seconds of training until the mean of the last 100 games is at a score: polyactor beside Stable-Baselines3.

python benchmarks/time_to_score.py cartpole --seeds 5

Each library with settings that suit it: Stable-Baselines3 has those its own zoo found for this environment, with one
and with two torch threads. Drivers, virtual environments and clock are those of ``peers.py``; the clock starts with the
first update, so imports are not in it. The contestants take turns, every one of them with every seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import signal
import statistics
import sys
from contextlib import suppress
from datetime import UTC, datetime

import peers

LIMIT = 300.0
"""Seconds after which a run has failed."""

POLE = "CartPole-v1"
ZOO_A2C = {"ent_coef": 0.0}
ZOO_PPO = {
    "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
    "learning_rate": 0.001, "clip_range": 0.2,
}  # fmt: skip

Contestants = list[tuple[str, str, dict[str, object], str]]
"""Name, driver, settings, and the name of whom its time is divided by."""


def sb3(name: str, algorithm: str, values: dict[str, object]) -> Contestants:
    """With one and with two threads."""
    settings = {"algorithm": algorithm, "env": POLE, "envs": 8, "values": values}
    return [(f"{name}, threads {threads}", "sb3", {**settings, "threads": threads}, name) for threads in (1, 2)]


ROWS: dict[str, tuple[float, Contestants]] = {
    "cartpole": (
        475.0,
        [
            ("polyactor A2C", "polyactor", {"flags": ["cartpole-a2c"], "whole": True}, "SB3 A2C"),
            ("polyactor A3C, 2 workers", "polyactor", {"flags": ["cartpole-a3c"], "whole": True}, "SB3 A2C"),
            *sb3("SB3 A2C", "a2c", ZOO_A2C),
            ("polyactor PPO", "polyactor", {"flags": ["ppo", "--env", POLE], "whole": True}, "SB3 PPO"),
            *sb3("SB3 PPO", "ppo", ZOO_PPO),
        ],
    )
}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", default="cartpole", choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N")
    options = parser.parse_args()
    peers.adopt_orphans()
    signal.signal(signal.SIGTERM, peers.interrupt)
    target, contestants = ROWS[options.row]
    try:
        found = measured(target, contestants, options.seeds)
    except peers.PeerFailed as failure:
        print(failure.said, file=sys.stderr)
        sys.exit(f"time_to_score: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)

    middle = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in found.items()}
    print(f"\n{options.row}, mean of 100 games at {target:g}: {peers.cpu_name()}")
    for name, _, _, against in contestants:
        other = min(value for each, value in middle.items() if each.startswith(against))
        seconds, steps = zip(*found[name], strict=True)
        print(
            f"{name:<28}{sum(map(math.isfinite, seconds))} of {len(seconds)} seeds"
            f"{peers.spread(list(seconds), '.1f'):>24} s{peers.spread(list(steps), ',.0f'):>36} steps"
            f"   {middle[name] / other:.3f} of {against}'s better"
        )
    said = {
        "row": options.row,
        "target": target,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": peers.cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "polyactor": peers.commit(),
        "packages": {peer: peers.packages(peer) for peer in {contestant[1] for contestant in contestants}},
        "contestants": [
            {
                "name": name,
                "settings": settings,
                "seconds_and_steps": [run if math.isfinite(run[0]) else None for run in found[name]],
            }
            for name, _, settings, _ in contestants
        ],
    }
    peers.RESULTS.mkdir(exist_ok=True)
    (peers.RESULTS / f"time-to-score-{options.row}.json").write_text(json.dumps(said, indent=1) + "\n")


def measured(target: float, contestants: Contestants, seeds: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, steps) of every run; infinite where it did not get there."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in contestants}
    for seed in range(1, seeds + 1):
        for name, peer, settings, _ in contestants:
            own = {**settings, "seed": seed}
            if peer == "polyactor":
                own["flags"] = [*settings["flags"], "--seed", str(seed)]  # type: ignore[misc]
            reached = until(target, peers.Contestant(name, peer, {"": own}, name))
            found[name].append(reached)
            print(
                f"seed {seed}  {name:<28}{reached[0]:>8.1f} s  {reached[1]:>10,.0f} steps", file=sys.stderr, flush=True
            )
    return found


def until(target: float, contestant: peers.Contestant) -> tuple[float, float]:
    """Seconds from the first update, and steps."""
    with peers.driver(peers.interpreter(contestant.peer), contestant, "") as lines:
        start = next(lines).at
        with suppress(peers.DriverEnded):  # it made all its steps
            for line in lines:
                if line.score >= target:
                    return round(line.at - start, 3), line.steps
                if line.at - start > LIMIT:
                    break
    return math.inf, math.inf


if __name__ == "__main__":
    main()
