"""The speed of training on this machine, as a share of the speed of the environments alone.

Both are measured by the wall clock in turn (environments, training, environments, training, …), since a machine's speed
drifts: only ratios from one call are comparable.
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
from polyactor.config import TRANSPORTS, Config
from polyactor.envs import AtariOptions, Environment, EnvSpec, draw, env_spec, looked_at, name_of
from polyactor.shared.timing import Part
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import tune_allocator
from polyactor.system.notices import Doing, waiting
from polyactor.transport.processes import ProcessPool

WAITS = 0.15
"""Share of the workers' time above which waiting is the first thing to reduce."""
ADVICE = {
    Part.INFER: "more --envs per worker make each pass worth more",
    Part.STORE: "smaller observations, or a longer --rollout",
    Part.DIFFERENTIATE: "--precision bf16 if it is fp32, a smaller --model.torso, fewer --algorithm.epochs",
    Part.APPLY: "a longer --rollout or more --envs make fewer updates",
    Part.WAIT: "--scheme hogwild waits for nobody",
}
"""What to change where a part of the workers' time dominates."""
ELSEWHERE = "more --envs or a longer --rollout make fewer letters"
"""What to change where waiting dominates and workers are on other machines."""
ENVIRONMENTS = 64
"""Most environments per process where they are measured alone: enough for their best speed."""
PREPARING = 30.0
"""Seconds that a process may take to make, reset and step its environments once; slow ones are fewer."""
TRIED = 3
"""Steps of one environment by which it is judged."""
MOST = 4
"""A round begins only while less time has passed than this multiple of all measurements' length, and `PREPARING`."""


def bench(configs: Sequence[Config], *, seconds: float, rounds: int = 3) -> list[tuple[float, ...]]:
    """Measure and print training as a share of the environments alone, each config in turn, in rounds.

    Where steps are slow, a measurement takes one step of all environments or three updates per worker, if that is
    longer, and rounds end early: there is always one, but none begins after ``M · (MOST · seconds + PREPARING)``
    seconds, where M is the number of measurements.

    Args:
        configs: the configs to train; one with a single-process scheme gets as many environments as all workers have.
        seconds: the length of each measurement, without start-up.
        rounds: measurements of the environments alone and of each config; the environments get one more at the end.

    Returns:
        For each config its ratio in each round: training speed ÷ mean speed of the environments before and after.
    """
    tune_allocator()
    processes = max(config.workers for config in configs)
    processes = processes if processes > 1 else len(os.sched_getaffinity(0))
    configs = [replace(c, envs=c.envs * processes) if c.scheme.single else c for c in configs]
    v, first = versions(), configs[0]
    print(f"{cpu_name()}, {processes} processes, torch {v['torch']}, {name_of(first.env)}")
    specs = [env_spec(config.environment, atari=config.atari, seconds=config.env_timeout) for config in configs]
    names = [_name(config, spec) for config, spec in zip(configs, specs, strict=True)]
    trained: list[list[Trained]] = [[] for _ in configs]
    measurements, began = rounds * (len(configs) + 1) + 1, time.monotonic()
    with waiting(doing := Doing("making environments")):
        count = _count(first, seconds)

        def environments(round_: int) -> float:
            doing.words = f"round {round_} of {rounds}: {count} environments alone in each of {processes} processes"
            return environments_alone(first, processes, seconds, count)

        alone = [environments(1)]
        while (done := len(alone) - 1) < rounds:
            took = time.monotonic() - began
            if done and took > measurements * (MOST * seconds + PREPARING):
                print(f"{done} of {rounds} rounds, which took {took:.0f} s: steps are slow")
                break
            for results, config, spec, name in zip(trained, configs, specs, names, strict=True):
                doing.words = f"round {done + 1} of {rounds}: training {name.strip()}"
                results.append(training_rate(config, spec, seconds))
            alone.append(environments(done + 1))
    print(f"{'environments alone':<44}{_median(alone):>24} steps/s")
    around = [statistics.fmean(pair) for pair in pairwise(alone)]
    ratios = []
    for results, name in zip(trained, names, strict=True):
        rates = [each.rate for each in results]
        ratios.append(tuple(rate / limit for rate, limit in zip(rates, around, strict=True)))
        low, middle, high = min(ratios[-1]), statistics.median(ratios[-1]), max(ratios[-1])
        print(f"{name:<44}{_median(rates):>24} steps/s   ratio {middle:.3f} [{low:.3f}–{high:.3f}]")
    print("\nMicroseconds of workers' time per step")
    print(f"{'':<44}" + "".join(f"{part:>15}" for part in Part))
    for results, config, name in zip(trained, configs, names, strict=True):
        parts = {part: statistics.median(each.microseconds[part] for each in results) for part in Part}
        print(f"{name:<44}" + "".join(f"{parts[part]:>15,.0f}" for part in Part))
        print(f"  {advice(parts, elsewhere=TRANSPORTS[config.transport].elsewhere)}")
    return ratios


def advice(parts: Mapping[Part, float], *, elsewhere: bool = False) -> str:
    """Return what to change to train faster.

    Args:
        parts: the microseconds per step that each part takes.
        elsewhere: whether workers may be on other machines.
    """
    total = sum(parts.values())
    share = {part: value / total for part, value in parts.items()}
    if share[Part.WAIT] > WAITS:
        return f"{share[Part.WAIT]:.0%} is waiting for others: {ELSEWHERE if elsewhere else ADVICE[Part.WAIT]}"
    if share[Part.EMULATE] > 0.5:
        return f"{share[Part.EMULATE]:.0%} is the environments' own: no setting of training can gain more than the rest"
    most = max((part for part in parts if part is not Part.EMULATE), key=parts.__getitem__)
    return f"{share[most]:.0%} is {most}: {ADVICE[most]}"


def _count(config: Config, seconds: float) -> int:
    """Return how many environments a process makes within `PREPARING`, and steps at least twice in `seconds`."""
    start = time.perf_counter()
    with looked_at(config.environment, 1, seconds=config.env_timeout, atari=config.atari) as (envs, asked):
        asked.asked(-1, None)
        envs.reset(0)
        asked.answered()
        reset, rng = time.perf_counter(), np.random.default_rng(0)
        for _ in range(TRIED):
            envs.step(draw(envs.action_space, 1, rng, envs.action_mask))
            asked.answered()
        step, made = (time.perf_counter() - reset) / TRIED, reset - start
    return max(1, min(ENVIRONMENTS, int(PREPARING / (made + step)), int(seconds / 2 / step)))


def environments_alone(config: Config, processes: int, seconds: float, count: int = ENVIRONMENTS) -> float:
    """Return the steps per second of environments alone, random actions: `count` of them in each process."""
    counts = torch.zeros(processes, 2, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
    pool = ProcessPool(_step, processes, (config.environment, config.atari, config.env_timeout, seconds, count, counts))
    try:
        while not pool.wait(0.1):
            pass
    finally:
        pool.stop()
    return float((counts[:, 0] / counts[:, 1]).sum())


def _step(
    worker: int,
    env: Environment,
    atari: AtariOptions,
    deadline: float,
    seconds: float,
    count: int,
    counts: torch.Tensor,
) -> None:
    """Step environments for `seconds`, and write steps and elapsed seconds into the worker's row of `counts` [W, 2]."""
    with looked_at(env, count, seconds=deadline, atari=atari) as (envs, asked):
        asked.asked(-1, None)
        envs.reset(worker)
        asked.answered()
        rng = np.random.default_rng(worker)
        actions = [draw(envs.action_space, count, rng) for _ in range(16)]
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            legal = envs.action_mask
            envs.step(actions[steps % 16] if legal is None else draw(envs.action_space, count, rng, legal))
            asked.answered()
            steps += 1
        counts[worker] = torch.tensor([steps * count, time.perf_counter() - start], dtype=torch.float64)


@dataclass(frozen=True)
class Trained:
    """The measured speed of training.

    Attributes:
        rate: agent steps per second that updates have consumed.
        microseconds: workers' time per agent step, by part.
    """

    rate: float
    microseconds: dict[Part, float]


def training_rate(config: Config, spec: EnvSpec, seconds: float) -> Trained:
    """Train and measure the speed over `seconds`, which begin after ten updates per worker.

    Where updates are slow, they begin `seconds` after the first update, and last until there is another one.

    Raises:
        RuntimeError: training ended before the measurement did.
    """
    parts = Parts.fresh(replace(config, steps=10**12), spec)
    counters, run = parts.counters, transport.run(parts)
    first, start, steps, spent = None, None, 0, counters.spent()
    try:
        for _ in run:
            now = time.perf_counter()
            if first is None and counters.version > 0:
                first = now
            warm = first is not None and (counters.version >= 10 * config.workers or now - first >= seconds)
            if start is None and warm:
                start, steps, spent = now, counters.steps, counters.spent()
            if start is not None and now - start >= seconds and (count := counters.steps - steps):
                each = {part: 1e6 * (total - spent[part]) / count for part, total in counters.spent().items()}
                return Trained(count / (now - start), each)
    finally:
        run.close()
    raise RuntimeError("training ended before it was measured")


def _name(config: Config, spec: EnvSpec) -> str:
    """Return a config in a few words: preset, scheme, workers × environments, precision."""
    shown = precision(config, images=Parts.fresh(config, spec).state.layout.convolutional)
    return f"{config.preset} {config.scheme.name} {config.workers} × {config.envs} {shown}"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}–{max(values):,.0f}]"
