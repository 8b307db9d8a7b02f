"""Which settings can be changed while a run goes on, and the config with such changes in place."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polyactor.config import Config, parse_per_worker
from polyactor.errors import UsageError, one_line, suggestion
from polyactor.fields import converted, replace_at, walk
from polyactor.settings.check import check

READ_ANEW = ("algorithm", "optimizer")
"""Sections of a config that workers read anew: before each rollout, and before each update."""


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config of a run with settings changed, for all workers: also where `per_worker` has values of one.

    Args:
        config: the config that the run began with.
        values: the new values by dotted name.

    Raises:
        UsageError: there is no such setting, it cannot be changed during a run, or its value is not allowed.
    """
    settings = {setting.path: setting for setting in walk(config)}
    new, before = config, _settled(config) if values else {}
    for path, value in values.items():
        if path not in settings:
            raise UsageError(f"there is no setting {one_line(path, most=80)}{suggestion(path, settings)}")
        setting = settings[path]
        hints = set(typing.get_args(setting.declared.hint) or (setting.declared.hint,))
        if path.partition(".")[0] not in READ_ANEW or not hints <= {int, float, types.NoneType}:
            raise UsageError(
                f"--{setting.flag} cannot be changed during a run: only numbers of the algorithm and the optimizer can"
            )
        new = replace_at(new, path, converted(value, setting.declared.hint))
    own = tuple(entry for entry in config.per_worker if not parse_per_worker((entry,)).keys() & values.keys())
    new = replace(new, per_worker=own)
    if values:
        check(new)
    for path in values:
        alone = replace_at(config, path, _at(new, path))
        for what, value in _settled(alone).items():
            if value != before[what]:
                raise UsageError(f"--{settings[path].flag} cannot be changed during a run: {what} when the run starts")
    return new


def _at(config: Config, path: str) -> Any:
    """Return the value of a setting by its dotted name."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _settled(config: Config) -> dict[str, Any]:
    """Return what a run derives of these sections only once, as it starts, by the words of a sentence's reason."""
    import torch  # statistics of an optimizer are tensors

    algorithm, statistics = config.algorithm, config.optimizer.statistics(torch.zeros(1))
    return {
        "the size of the replay buffers is settled": algorithm.remembers,
        "the average network's decay is settled": algorithm.averaging,
        "the kind of update is settled": (algorithm.moves, algorithm.differentiate is None, algorithm.reuses),
        "what a rollout holds is settled": (algorithm.outputs, algorithm.needs, algorithm.metrics),
        "the scale of rewards is settled": algorithm.gamma if config.normalize.reward else None,
        "the optimizer's statistics are made": {name: tensor.tolist() for name, tensor in statistics.items()},
    }
