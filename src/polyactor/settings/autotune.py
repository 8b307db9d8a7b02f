"""Autotuning: ``--workers auto`` and ``--envs auto`` choose numbers that suit this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyactor.config import Config
from polyactor.data import leaves, map_tree
from polyactor.envs import EnvSpec, VectorEnv, draw, make_envs, name_of
from polyactor.errors import UsageError
from polyactor.settings.check import check
from polyactor.system.deadline import Call, bounded

SIZES = (4, 8, 16, 32, 64)
"""Numbers of environments per worker that are tried."""
NEAR = 0.05
"""The smallest number whose cost is within this share of the best is chosen: more would only make updates rarer."""
SLOW = 0.3
"""Most seconds that one step of all environments of a worker may take; larger numbers are not tried."""
TIMED = 0.15
"""Seconds for which each number of environments is timed."""
MAKING = 2.5
"""Most seconds spent on creating environments, over all numbers tried."""
WARM_UP = 2
"""Steps at the start of a measurement that do not count."""


def chosen(configs: Sequence[Config], wanted: Collection[str]) -> tuple[list[Config], list[str]]:
    """Return the configs with automatically chosen numbers, and a sentence with the reason for each number.

    Environments are measured once, with the first config, since acting costs the same under each scheme.

    Args:
        configs: configs of runs in the same environment.
        wanted: the fields to choose, of "workers" and "envs".

    Raises:
        UsageError: no number of environments is allowed with the other settings.
        EnvironmentUnsupported: the environments cannot be created.
    """
    configs, reasons = list(configs), list[str]()
    if "workers" in wanted:
        pairs = [workers(config) for config in configs]
        configs = [replace(config, workers=count) for config, (count, _) in zip(configs, pairs, strict=True)]
        reasons += dict.fromkeys(reason for _, reason in pairs)
    if "envs" in wanted:
        sizes = allowed(configs)
        from polyactor.system.machine import usual_tensors

        with usual_tensors(), closing(Stopwatch(configs[0])) as microseconds:
            size, reason = cheapest(microseconds, sizes)
        configs = [replace(config, envs=size) for config in configs]
        reasons.append(reason)
    return configs, reasons


def workers(config: Config) -> tuple[int, str]:
    """Return the number of workers, one per core unless the scheme has only one, and the reason."""
    if config.scheme.single:
        return 1, f"1 worker: --scheme {config.scheme.name} has one"
    cores = len(os.sched_getaffinity(0))
    count = f"{cores} worker{'s' * (cores > 1)}"
    return cores, f"{count}: one per core this process may use, since a worker is one thread that keeps one core busy"


def allowed(configs: Sequence[Config]) -> list[int]:
    """Return the numbers of environments per worker that are allowed in each config.

    Raises:
        UsageError: none is allowed; the sentence is about the largest.
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
    """Return the smallest number of environments whose cost is near the best, and the reason.

    Args:
        microseconds: returns the cost of an agent step for a number of environments.
        sizes: numbers of environments in rising order; those that would be slow are not tried.
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
    """Measures the cost of acting with B environments on one thread, in microseconds per agent step.

    Acting is a forward pass of the model and a step of the environments. The cost is the lower quartile of many steps,
    since other load on the machine must not count. Where environments take long to create (an Atari emulator a fifth
    of a second), the existing ones are stepped several times in place of more.
    """

    def __init__(self, config: Config) -> None:
        from polyactor.agent.parts import make_model
        from polyactor.system.machine import tune_allocator

        tune_allocator()
        self.config, self.made, self.each = config, 0.0, 0.0
        with ExitStack() as opened:
            self.asked = opened.enter_context(bounded(name_of(config.env), config.env_timeout))
            self.envs: VectorEnv = self._make(SIZES[0])
            self.opened = opened.pop_all()
        self.model = make_model(config, EnvSpec.of(self.envs))
        self.model.lower()
        for part in self.model.running.values():
            part.count.fill_(1)  # observations are scaled only after an update

    def __call__(self, size: int) -> float:
        """Return the cost with `size` environments; call it with rising sizes, each a multiple of the last."""
        import torch

        from polyactor.system.machine import torch_threads

        if self.envs.num_envs < size and self.made + size * self.each <= MAKING:
            self.envs.close()
            self.envs = self._make(size)
        envs, model, costs = self.envs, self.model, list[float]()
        times = size // envs.num_envs
        observation = map_tree(lambda rows: torch.from_numpy(np.concatenate([rows] * times)), self.first)
        places = [each.view(times, envs.num_envs, *each.shape[1:]) for each in leaves(observation)]
        memo, rng = model.blank_memo(size, differentiated=not self.config.algorithm.reuses), np.random.default_rng(0)

        def legal(action: NDArray[Any]) -> NDArray[Any]:
            mask = envs.action_mask
            return action if mask is None else draw(envs.action_space, envs.num_envs, rng, mask)

        state, is_first = model.initial_state(size), torch.zeros(size, dtype=torch.bool)
        generator, end = torch.Generator(), time.perf_counter() + TIMED
        with torch_threads(1), torch.inference_mode():
            while len(costs) <= WARM_UP or time.perf_counter() < end:
                start = time.perf_counter()
                params, state = model.step(observation, state, is_first, memo)
                action = model.actions.sent(model.distribution(params).sample(generator)).numpy()
                steps = [envs.step(legal(some)) for some in np.split(action, times)]
                self.asked.answered()
                costs.append(1e6 * (time.perf_counter() - start) / size)
                for i, step in enumerate(steps):
                    for place, rows in zip(places, leaves(step.observation), strict=True):
                        place[i].copy_(torch.from_numpy(rows))
        return float(np.quantile(costs[WARM_UP:], 0.25))

    def _make(self, size: int) -> VectorEnv:
        """Create and reset environments, and add the seconds it took to `made`."""
        config, start = self.config, time.perf_counter()
        self.asked.asked(-1, None, Call.CONSTRUCTOR)
        envs = make_envs(
            config.environment,
            size,
            atari=config.atari,
            max_episode_steps=config.max_episode_steps,
            listener=self.asked,
        )
        with ExitStack() as failing:
            failing.callback(envs.close)
            self.asked.asked(-1, None)
            self.first = envs.reset(config.seed)
            self.asked.answered()
            failing.pop_all()
        took = time.perf_counter() - start
        self.made, self.each = self.made + took, took / size
        return envs

    def close(self) -> None:
        """Close the environments."""
        with self.opened:
            self.envs.close()
            self.asked.answered()


def _figures(cost: float) -> str:
    """Return a number with three figures, or with all of its whole part."""
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}"
