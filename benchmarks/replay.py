"""What does replay cost? Fills the memory of a preset, both workers' share of it, and samples from it.

python benchmarks/replay.py pong-acer --workers 2 --envs 16

Printed: bytes on disk, the process's own memory before and after (pages of mapped files are the system's and counted
apart), and what it costs to draw a batch beside the update it feeds. The frames are noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from polyactor.agent.learner import differentiate
from polyactor.agent.parts import Parts
from polyactor.data import Batch
from polyactor.envs import env_spec
from polyactor.settings.presets import base_config
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import torch_threads, tune_allocator

RESULTS = Path(__file__).parent / "results"
REPEATS = 20


def main() -> None:
    """Fill, sample, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--envs", type=int, default=16)
    options = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory(dir=".") as out, torch_threads(1):
        config = replace(base_config(options.preset), workers=options.workers, envs=options.envs, out=out)
        parts = Parts.fresh(config, env_spec(config.env, atari=config.atari))
        replica, actor = parts.actor(0)
        rollout = actor.collect(replica.version)
        before = memory()
        learner = parts.learner(0, replica)
        rings = [learner.replay, *(parts.replay(worker, replica.model) for worker in range(1, config.workers))]
        noise = torch.randint(0, 256, rollout.observation.shape, dtype=torch.uint8)
        for ring in rings:
            assert ring is not None
            for _ in range(ring.slots):
                ring.add(rollout.replace(observation=noise))
        after, disk = memory(), sum(each.stat().st_blocks * 512 for each in Path(out).rglob("*.bin"))
        generator, model = torch.Generator().manual_seed(0), replica.model
        count, rows = config.envs, config.envs * config.rollout
        assert learner.replay is not None
        draw, ring = microseconds(lambda: learner.sample(count, generator), rows), learner.replay
        gather = microseconds(lambda: ring.sample(count, generator), rows)
        batch = Batch(learner.sample(count, generator))
        update = microseconds(lambda: differentiate(config.algorithm, model, batch), rows)
    steps = sum(ring.steps for ring in rings if ring is not None)
    print(f"{cpu_name()}, {options.preset}, {options.workers} × {options.envs}: {steps:,} steps can be replayed")
    print(f"on disk                  {disk / 1e9:8.2f} GB, {disk / steps:,.0f} bytes a step")
    print(f"the process's own memory {before['own']:8.0f} MiB before, {after['own']:.0f} MiB after")
    print(f"mapped pages             {before['mapped']:8.0f} MiB before, {after['mapped']:.0f} MiB after")
    print(f"drawing a batch          {gather:8.1f} µs a step, {draw:.1f} with its images prepared")
    print(f"the update it feeds      {update:8.1f} µs a step: {gather / update:.1%}, {draw / update:.1%}")
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "preset": options.preset, "workers": options.workers, "envs": options.envs, "steps": steps, "disk_bytes": disk,
        "memory_mib": {"before": before, "after": after},
        "microseconds": {"gather": gather, "draw": draw, "update": update},
        "cpu": cpu_name(), "versions": versions(),
    }  # fmt: skip
    (RESULTS / f"replay-{options.preset}.json").write_text(json.dumps(kept, indent=1) + "\n")


def memory() -> dict[str, float]:
    """MiB of this process: its own, and those of mapped files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    size = {name: int(value.split()[0]) / 1024 for name, value in (line.split(":") for line in lines)}
    return {"own": size["Pss_Anon"] + size["Pss_Shmem"], "mapped": size["Pss_File"]}


def microseconds(act: Callable[[], object], rows: int) -> float:
    """Of one call, per row."""
    act()
    start = time.perf_counter()
    for _ in range(REPEATS):
        act()
    return 1e6 * (time.perf_counter() - start) / REPEATS / rows


if __name__ == "__main__":
    main()
