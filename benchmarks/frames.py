"""What does it cost to send frames once? Plays games at random, and times both ends of the way of their stacks.

python benchmarks/frames.py

Printed for each game: bytes of a step in stacks and with each frame once, and µs a step to take the frames and to
rebuild the stacks, beside a plain copy of the stacks. Every rollout is compared byte by byte with what is rebuilt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from polyactor.data.frames import frames_once, write_frames
from polyactor.envs import make_envs
from polyactor.envs.atari import AtariOptions
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import tune_allocator

RESULTS = Path(__file__).parent / "results"
GAMES = ("Pong", "Breakout", "SpaceInvaders")
REPEATS = 7


def main() -> None:
    """Play, time, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_000, help="agent steps of each game")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--rollout", type=int, default=20)
    options = parser.parse_args()
    tune_allocator()
    t, b, found = options.rollout, options.envs, {}
    print(f"{cpu_name()}, rollouts of {t} × {b}, {options.steps:,} steps of each game")
    print("game           bytes a step: stacks   once   µs a step: copy   take   rebuild   both (medians)")
    for game in GAMES:
        found[game] = measured(game, options.steps // (t * b), t, b)
        size, times = found[game]["bytes"], found[game]["microseconds"]
        print(
            f"{game:<14} {size['stacks']:>20,.0f} {size['once']:>6,.0f} {times['copy']:>17.1f}"
            f" {times['take']:>6.1f} {times['rebuild']:>9.1f} {times['take'] + times['rebuild']:>6.1f}"
        )
    RESULTS.mkdir(exist_ok=True)
    kept = {"games": found, "rollout": t, "envs": b, "steps": options.steps, "cpu": cpu_name(), "versions": versions()}
    (RESULTS / "frames.json").write_text(json.dumps(kept, indent=1) + "\n")


def measured(game: str, rollouts: int, t: int, b: int) -> dict[str, dict[str, float]]:
    """Return bytes and µs per step of one game, medians over its rollouts."""
    envs = make_envs(f"{game}NoFrameskip-v4", b, atari=AtariOptions(life_loss=True), threads=1)
    rng, row = np.random.default_rng(0), envs.reset(0)
    into, sizes = np.empty((t + 1, *row.shape), np.uint8), []
    times: dict[str, list[float]] = {"copy": [], "take": [], "rebuild": []}
    for _ in range(rollouts):
        rows = [row]
        for _ in range(t):
            rows.append(row := envs.step(rng.integers(0, envs.action_space.n, b)).observation)
        stacks = np.stack(rows)
        frames = frames_once(stacks)
        assert frames is not None
        times["copy"].append(microseconds(lambda x=stacks: np.copyto(into, x)) / (t * b))
        times["take"].append(microseconds(lambda x=stacks: frames_once(x)) / (t * b))
        into.fill(0)
        times["rebuild"].append(microseconds(lambda x=frames: write_frames(into, x)) / (t * b))
        assert np.array_equal(into, stacks)
        sizes.append(sum(each.nbytes for each in frames) / (t * b))
    envs.close()
    return {
        "bytes": {"stacks": stacks.nbytes / (t * b), "once": statistics.mean(sizes)},
        "microseconds": {name: statistics.median(each) for name, each in times.items()},
    }


def microseconds(act: Callable[[], object]) -> float:
    """Return the median time of one call."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken)


if __name__ == "__main__":
    main()
