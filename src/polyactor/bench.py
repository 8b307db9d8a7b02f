"""Speed on this machine, as a share of what the emulator alone gives in the same run.

Both are measured from outside by the wall clock, in turn (emulator, training, emulator, training, …), since a machine's
speed drifts: only ratios within one run mean anything.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from polyactor import transport
from polyactor.board import Board
from polyactor.build import make_state, precision
from polyactor.config import Config
from polyactor.envs import make_envs
from polyactor.metrics import cpu_name, versions
from polyactor.processes import Crew, tune_allocator

ENVIRONMENTS = 64
"""Per process, for the environments alone: enough for their best rate."""


def bench(configs: Sequence[Config], *, seconds: float, rounds: int = 3) -> list[tuple[float, ...]]:
    """Measure and print training as a share of the environments alone, each config in turn, in rounds.

    Args:
        configs: what is trained; a scheme of one process gets the environments of all workers of the others.
        seconds: of each measurement, start-up excluded.
        rounds: of the environments alone, then each config; one more of the environments closes the last.

    Returns:
        For each config its ratio in each round: its rate ÷ the mean of the environments' rates before and after.
    """
    tune_allocator()
    processes = max(config.workers for config in configs)
    processes = processes if processes > 1 else len(os.sched_getaffinity(0))
    configs = [replace(c, envs=c.envs * processes) if c.scheme.single else c for c in configs]
    v, first = versions(), configs[0]
    print(f"{cpu_name()}, {processes} processes, torch {v['torch']}, {first.env}")
    alone = [environments_alone(first, processes, seconds)]
    rates: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for own, config in zip(rates, configs, strict=True):
            own.append(training_rate(config, seconds))
        alone.append(environments_alone(first, processes, seconds))
    print(f"{'environments alone':<44}{_median(alone):>24} steps/s")
    around = [statistics.fmean(pair) for pair in pairwise(alone)]
    ratios = []
    for own, config in zip(rates, configs, strict=True):
        shown = precision(config, images=make_state(config).layout.convolutional)
        ratios.append(tuple(rate / limit for rate, limit in zip(own, around, strict=True)))
        low, middle, high = min(ratios[-1]), statistics.median(ratios[-1]), max(ratios[-1])
        name = f"{config.preset} {config.scheme.name} {config.workers} × {config.envs} {shown}"
        print(f"{name:<44}{_median(own):>24} steps/s   ratio {middle:.3f} [{low:.3f}–{high:.3f}]")
    return ratios


def environments_alone(config: Config, processes: int, seconds: float) -> float:
    """One vector environment and one thread in each of W processes, random actions fixed beforehand."""
    marks = torch.zeros(processes, 2, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
    crew = Crew(_step, processes, (config.env, config.atari, seconds, marks))
    try:
        while not crew.wait(0.1):
            pass
    finally:
        crew.stop()
    return float((marks[:, 0] / marks[:, 1]).sum())


def _step(worker: int, env: str, atari: object, seconds: float, marks: torch.Tensor) -> None:
    envs = make_envs(env, ENVIRONMENTS, atari=atari)  # type: ignore[arg-type]
    envs.reset(worker)
    envs.action_space.seed(worker)
    actions = [np.stack([envs.action_space.sample() for _ in range(ENVIRONMENTS)]) for _ in range(16)]
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        envs.step(actions[steps % 16])
        steps += 1
    marks[worker] = torch.tensor([steps * ENVIRONMENTS, time.perf_counter() - start], dtype=torch.float64)


def training_rate(config: Config, seconds: float) -> float:
    """Environment steps consumed by updates per second, from when every worker has applied its tenth update."""
    config = replace(config, steps=10**12)
    state, board = make_state(config), Board(config.workers, config.algorithm.metrics)
    run = transport.run(config, state, board)
    start, steps = None, 0
    try:
        for _ in run:
            now = time.perf_counter()
            if start is None and board.version >= 10 * config.workers:
                start, steps = now, board.steps
            if start is not None and now - start >= seconds:
                return (board.steps - steps) / (now - start)
    finally:
        run.close()
    raise RuntimeError("training ended before it was measured")


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}–{max(values):,.0f}]"
