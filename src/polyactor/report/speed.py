"""Speed on this machine, as a share of what the emulator alone gives in the same run.

Both are measured from outside by the wall clock, in turn (emulator, training, emulator, training, …), since a machine's
speed drifts: only ratios within one run mean anything.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from polyactor import transport
from polyactor.agent.parts import Parts, precision
from polyactor.config import Config
from polyactor.envs import EnvSpec, env_spec, make_envs
from polyactor.shared.timing import Part
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import tune_allocator
from polyactor.transport.processes import ProcessPool

WAITS = 0.15
"""Share of time above which waiting is what to change first."""
ADVICE = {
    Part.INFER: "more --envs per worker make each pass worth more",
    Part.STORE: "smaller observations, or a longer --rollout",
    Part.DIFFERENTIATE: "--precision bf16 if it is fp32, a smaller --model.torso, fewer --algorithm.epochs",
    Part.APPLY: "a longer --rollout or more --envs make fewer updates",
    Part.WAIT: "--scheme hogwild waits for nobody",
}
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
    specs = [env_spec(config.env, atari=config.atari) for config in configs]
    names = [_name(config, spec) for config, spec in zip(configs, specs, strict=True)]
    alone = [environments_alone(first, processes, seconds)]
    trained: list[list[Trained]] = [[] for _ in configs]
    for _ in range(rounds):
        for own, config, spec in zip(trained, configs, specs, strict=True):
            own.append(training_rate(config, spec, seconds))
        alone.append(environments_alone(first, processes, seconds))
    print(f"{'environments alone':<44}{_median(alone):>24} steps/s")
    around = [statistics.fmean(pair) for pair in pairwise(alone)]
    ratios = []
    for own, name in zip(trained, names, strict=True):
        rates = [each.rate for each in own]
        ratios.append(tuple(rate / limit for rate, limit in zip(rates, around, strict=True)))
        low, middle, high = min(ratios[-1]), statistics.median(ratios[-1]), max(ratios[-1])
        print(f"{name:<44}{_median(rates):>24} steps/s   ratio {middle:.3f} [{low:.3f}–{high:.3f}]")
    print("\nMicroseconds of workers' time per step")
    print(f"{'':<44}" + "".join(f"{part:>15}" for part in Part))
    for own, name in zip(trained, names, strict=True):
        parts = {part: statistics.median(each.microseconds[part] for each in own) for part in Part}
        print(f"{name:<44}" + "".join(f"{parts[part]:>15,.0f}" for part in Part))
        print(f"  {advice(parts)}")
    return ratios


def advice(parts: Mapping[Part, float]) -> str:
    """What to change, from where the time goes."""
    total = sum(parts.values())
    share = {part: value / total for part, value in parts.items()}
    if share[Part.WAIT] > WAITS:
        return f"{share[Part.WAIT]:.0%} is waiting for others: {ADVICE[Part.WAIT]}"
    if share[Part.EMULATE] > 0.5:
        return f"{share[Part.EMULATE]:.0%} is the environments' own: no setting of training can gain more than the rest"
    most = max((part for part in parts if part is not Part.EMULATE), key=parts.__getitem__)
    return f"{share[most]:.0%} is {most}: {ADVICE[most]}"


def environments_alone(config: Config, processes: int, seconds: float) -> float:
    """One vector environment and one thread in each of W processes, random actions fixed beforehand."""
    marks = torch.zeros(processes, 2, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
    pool = ProcessPool(_step, processes, (config.env, config.atari, seconds, marks))
    try:
        while not pool.wait(0.1):
            pass
    finally:
        pool.stop()
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


@dataclass(frozen=True)
class Trained:
    """One measurement.

    Attributes:
        rate: environment steps consumed by updates per second.
        microseconds: of workers' time per such step, by part.
    """

    rate: float
    microseconds: dict[Part, float]


def training_rate(config: Config, spec: EnvSpec, seconds: float) -> Trained:
    """Train for so long, counted from when every worker has applied its tenth update."""
    parts = Parts.fresh(replace(config, steps=10**12), spec)
    counters, run = parts.counters, transport.run(parts)
    start, steps, spent = None, 0, counters.spent()
    try:
        for _ in run:
            now = time.perf_counter()
            if start is None and counters.version >= 10 * config.workers:
                start, steps, spent = now, counters.steps, counters.spent()
            if start is not None and now - start >= seconds:
                count = counters.steps - steps
                each = {part: 1e6 * (total - spent[part]) / count for part, total in counters.spent().items()}
                return Trained(count / (now - start), each)
    finally:
        run.close()
    raise RuntimeError("training ended before it was measured")


def _name(config: Config, spec: EnvSpec) -> str:
    shown = precision(config, images=Parts.fresh(config, spec).state.layout.convolutional)
    return f"{config.preset} {config.scheme.name} {config.workers} × {config.envs} {shown}"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}–{max(values):,.0f}]"
