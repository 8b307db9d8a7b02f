"""polyactor with the flags of `polyactor train`, or the environments of such a run alone, with random actions."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.cli.flags import read_config
from polyactor.config import Config
from polyactor.envs import env_spec, make_envs
from polyactor.report.speed import ENVIRONMENTS
from polyactor.settings.check import check
from polyactor.system.machine import tune_allocator
from polyactor.transport.processes import ProcessPool

INTERVAL = 0.2
"""Seconds between two lines."""
GAMES = 100


def main(settings: dict[str, Any]) -> None:
    """Train, or step, until killed."""
    tune_allocator()
    config = read_config(settings["flags"])
    if not settings.get("whole"):
        config = replace(config, steps=10**12)
    check(config)
    last = 0.0
    for line in environments(config) if settings.get("environments_alone") else training(config):
        now = time.perf_counter()
        if now - last >= INTERVAL:
            last = now
            print(line, flush=True)


def training(config: Config) -> Iterator[str]:
    """Environment steps consumed by updates; the mean score of the last 100 games, once there are so many."""
    parts = Parts.fresh(config, env_spec(config.env, atari=config.atari))
    counters = parts.counters
    scores: deque[float] = deque(maxlen=GAMES)
    for _ in transport.run(parts):
        scores.extend(game.score for game in counters.new_games())
        mean = f" score {sum(scores) / GAMES:.3f}" if len(scores) == GAMES else ""
        yield f"steps {counters.steps}{mean}"


def environments(config: Config) -> Iterator[str]:
    """Steps of one vector environment in a process for each core."""
    processes = len(os.sched_getaffinity(0))
    counts = torch.zeros(processes, dtype=torch.int64).share_memory_()
    pool = ProcessPool(step, processes, (config.env, config.atari, counts))
    while not pool.wait(INTERVAL):
        yield f"steps {int(counts.sum())}"


def step(worker: int, env: str, atari: Any, counts: torch.Tensor) -> None:
    """Actions are drawn beforehand."""
    envs = make_envs(env, ENVIRONMENTS, atari=atari)
    envs.reset(worker)
    envs.action_space.seed(worker)
    actions = [np.stack([envs.action_space.sample() for _ in range(ENVIRONMENTS)]) for _ in range(16)]
    while True:
        for action in actions:
            envs.step(action)
            counts[worker] += ENVIRONMENTS


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
