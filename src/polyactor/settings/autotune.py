"""``--workers auto`` and ``--envs auto``: numbers that suit this machine, and why these."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import numpy as np

from polyactor.config import Config
from polyactor.envs import EnvSpec, VectorEnv, make_envs
from polyactor.errors import UsageError
from polyactor.settings.check import check

SIZES = (4, 8, 16, 32, 64)
"""Environments per worker that are tried."""
NEAR = 0.05
"""The smallest size whose cost is within this share of the best is taken: more would only make updates rarer."""
SLOW = 0.3
"""Seconds: a size is not tried when all its environments would take longer to act once."""
TIMED = 0.15
"""Seconds for which each size is timed."""
MAKING = 2.5
"""Seconds for making environments, all sizes together."""
WARM_UP = 2
"""Passes that do not count."""


def chosen(configs: Sequence[Config], wanted: Collection[str]) -> tuple[list[Config], list[str]]:
    """The configs with the numbers that are wanted (of "workers" and "envs"), and the reasons for these.

    Environments are measured once, with the first config: schemes do not differ in what acting costs.

    Raises:
        UsageError: no number of environments can make them right.
        EnvironmentUnsupported: as `make_envs`.
    """
    configs, reasons = list(configs), list[str]()
    if "workers" in wanted:
        pairs = [workers(config) for config in configs]
        configs = [replace(config, workers=count) for config, (count, _) in zip(configs, pairs, strict=True)]
        reasons += dict.fromkeys(reason for _, reason in pairs)
    if "envs" in wanted:
        sizes = allowed(configs)
        with closing(Stopwatch(configs[0])) as microseconds:
            size, reason = cheapest(microseconds, sizes)
        configs = [replace(config, envs=size) for config in configs]
        reasons.append(reason)
    return configs, reasons


def workers(config: Config) -> tuple[int, str]:
    """One per core this process may use, and why."""
    if config.scheme.single:
        return 1, f"1 worker: --scheme {config.scheme.name} has one"
    cores = len(os.sched_getaffinity(0))
    count = f"{cores} worker{'s' * (cores > 1)}"
    return cores, f"{count}: one per core this process may use, since a worker is one thread that keeps one core busy"


def allowed(configs: Sequence[Config]) -> list[int]:
    """The sizes that none of these refuses.

    Raises:
        UsageError: there is none; what is said of the largest.
    """
    sizes = []
    for size in SIZES:
        with suppress(UsageError):
            for config in configs:
                check(replace(config, envs=size))
            sizes.append(size)
    if not sizes:
        for config in configs:
            check(replace(config, envs=SIZES[-1]))
    return sizes


def cheapest(microseconds: Callable[[int], float], sizes: Sequence[int]) -> tuple[int, str]:
    """The smallest size whose cost is near the best, and why.

    Args:
        microseconds: per step, with so many environments.
        sizes: in rising order; the larger are left out where they would be slow.
    """
    costs: dict[int, float] = {}
    for size in sizes:
        costs[size] = microseconds(size)
        if 2 * size * costs[size] > 1e6 * SLOW:
            break
    tried, near = list(costs), (1 + NEAR) * min(costs.values())
    i = next(i for i, size in enumerate(tried) if costs[size] <= near)
    before = f", {tried[i - 1]} took {_figures(costs[tried[i - 1]])}" if i else ""
    after = f"{tried[i + 1]} would gain under {100 * NEAR:g} %" if i + 1 < len(tried) else "more were not tried"
    return tried[i], f"{tried[i]} environments per worker: {_figures(costs[tried[i]])} µs a step{before} and {after}"


class Stopwatch:
    """Microseconds per step of acting with B environments on one thread: a pass of the model and a step of theirs.

    The lower quartile of many, since what else the machine does is no cost of theirs. Where environments take long to
    make (an Atari emulator a fifth of a second), those that are there are stepped several times in place of more.
    """

    def __init__(self, config: Config) -> None:
        from polyactor.agent.parts import make_model
        from polyactor.system.machine import tune_allocator

        tune_allocator()
        self.config, self.made, self.each = config, 0.0, 0.0
        self.envs: VectorEnv = self._make(SIZES[0])
        self.model = make_model(config, EnvSpec.of(self.envs))
        self.model.lower()
        for part in self.model.running.values():
            part.count.fill_(1)  # as after the first update: only then observations are scaled

    def __call__(self, size: int) -> float:
        """With so many environments; sizes in rising order, each a multiple of the one before."""
        import torch

        from polyactor.system.machine import torch_threads

        if self.envs.num_envs < size and self.made + size * self.each <= MAKING:
            self.envs.close()
            self.envs = self._make(size)
        envs, model, costs = self.envs, self.model, list[float]()
        times = size // envs.num_envs
        observation = torch.from_numpy(np.concatenate([self.first] * times))
        places = observation.view(times, envs.num_envs, *observation.shape[1:])
        differentiated = not self.config.algorithm.reuses
        memo = model.blank_memo(observation.shape[1:], size, differentiated=differentiated)
        state, is_first = model.initial_state(size), torch.zeros(size, dtype=torch.bool)
        generator, end = torch.Generator(), time.perf_counter() + TIMED
        with torch_threads(1), torch.inference_mode():
            while len(costs) <= WARM_UP or time.perf_counter() < end:
                start = time.perf_counter()
                params, state = model.step(observation, state, is_first, memo)
                action = model.distribution(params).sample(generator).numpy()
                steps = [envs.step(some) for some in np.split(action, times)]
                costs.append(1e6 * (time.perf_counter() - start) / size)
                for place, step in zip(places, steps, strict=True):
                    place.copy_(torch.from_numpy(step.observation))
        return float(np.quantile(costs[WARM_UP:], 0.25))

    def _make(self, size: int) -> VectorEnv:
        config, start = self.config, time.perf_counter()
        envs = make_envs(config.env, size, atari=config.atari, max_episode_steps=config.max_episode_steps)
        with ExitStack() as failing:
            failing.callback(envs.close)
            self.first = envs.reset(config.seed)
            failing.pop_all()
        took = time.perf_counter() - start
        self.made, self.each = self.made + took, took / size
        return envs

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def _figures(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}"
