"""Speed on this machine, as a share of what the emulator alone gives in the same run.

Both are measured from outside by the wall clock, in turn (emulator, training, emulator, training, …), since a machine's
speed drifts: only ratios within one run mean anything.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from polyactor import transport
from polyactor.board import Board
from polyactor.build import make_state
from polyactor.config import Config
from polyactor.envs import make_envs
from polyactor.metrics import cpu_name, versions
from polyactor.processes import Crew

ENVIRONMENTS = 64
"""Per process, for the environments alone: enough for their best rate."""


@dataclass(frozen=True)
class Rates:
    """Agent steps per second, all processes together: one value per round."""

    alone: tuple[float, ...]
    training: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Training ÷ the mean of the emulator's rates just before and just after it."""
        around = [statistics.fmean(pair) for pair in zip(self.alone, self.alone[1:], strict=False)]
        return tuple(rate / limit for rate, limit in zip(self.training, around, strict=True))


def bench(config: Config, *, seconds: float, rounds: int = 3) -> Rates:
    """Measure and print.

    Args:
        config: what is trained; its workers are also the number of processes of the emulator alone.
        seconds: of each measurement, start-up excluded.
        rounds: of emulator and training in turn; one more of the emulator closes the last.
    """
    from polyactor.build import precision

    v = versions()
    print(f"{cpu_name()}, {config.workers} processes of one thread, torch {v['torch']}, {config.env}")
    alone, training = [environments_alone(config, seconds)], []
    for _ in range(rounds):
        training.append(training_rate(config, seconds))
        alone.append(environments_alone(config, seconds))
    rates = Rates(tuple(alone), tuple(training))
    shown = precision(config, images=make_state(config).layout.convolutional)
    print(f"environments alone          {_median(rates.alone):>24} steps/s")
    print(f"{config.preset} {config.scheme.name} {shown:<14}{_median(rates.training):>24} steps/s")
    low, middle, high = min(rates.ratios), statistics.median(rates.ratios), max(rates.ratios)
    print(f"ratio                       {middle:.3f} [{low:.3f}–{high:.3f}] in {rounds} rounds")
    return rates


def environments_alone(config: Config, seconds: float) -> float:
    """One vector environment and one thread in each of W processes, random actions fixed beforehand."""
    marks = torch.zeros(config.workers, 2, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
    crew = Crew(_step, config.workers, (config.env, config.atari, seconds, marks))
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


def _median(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}–{max(values):,.0f}]"
