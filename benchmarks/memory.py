"""How large is a run, and does it grow? Fits a line to `rss_mb` of each run after its first two minutes.

polyactor train pong-a3c --envs 32 --steps 2000000 --out runs/soak; python benchmarks/memory.py runs/soak

That is the proportional size (PSS) of all its processes together; the last column is the largest, per worker.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

STOPPING = 2
"""Last lines, which workers that have left are no longer part of."""
SETTLED = 2.0
"""Minutes until buffers, caches and the allocator have their size."""


def main(runs: list[str]) -> None:
    """Print minutes, first and last size and slope of each run."""
    print(f"{'run':<40}{'minutes':>9}{'first MB':>10}{'last MB':>10}{'MB/min':>9}{'MB/worker':>11}")
    for run in runs:
        lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
        points = [(line["wall_s"] / 60, line["rss_mb"]) for line in lines if line.get("rss_mb")][:-STOPPING]
        minutes, sizes = zip(*(point for point in points if point[0] > SETTLED), strict=True)
        workers = json.loads((Path(run) / "config.json").read_text())["workers"]
        slope = statistics.linear_regression(minutes, sizes).slope
        print(
            f"{run:<40}{minutes[-1]:>9.1f}{sizes[0]:>10.0f}{sizes[-1]:>10.0f}{slope:>9.3f}{max(sizes) / workers:>11.0f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
