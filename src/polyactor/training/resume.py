"""From a checkpoint to what a resumed run starts with; it may be somebody else's, so nothing in it is believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyactor.agent.parts import Parts
from polyactor.agent.resumables import Resumables
from polyactor.config import Config
from polyactor.envs import EnvSpec, check_exact
from polyactor.errors import CheckpointError, EnvironmentUnsupported, UsageError, one_line
from polyactor.evaluation.policy import model_tensors, refuse_misfit
from polyactor.settings.serialize import StandIn, algorithm_from, from_json
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage.checkpoint import Checkpoint

MOST_COUNTED = 2**53


def refuse_inexact(config: Config) -> None:
    """Prove that a run with ``exact_resume`` will be one that can be resumed so.

    Raises:
        UsageError: its environment cannot be saved.
    """
    if config.exact_resume:
        try:
            check_exact(config.env, atari=config.atari, max_episode_steps=config.max_episode_steps)
        except EnvironmentUnsupported as error:
            raise UsageError(f"--exact-resume is not allowed: {error}".rstrip(".")) from None


def config_of(found: Checkpoint, *, algorithm: str | None, env: Any, trust_env: bool) -> Config:
    """The config of the run that was saved.

    Args:
        found: what was saved.
        algorithm: ``file.py:Class``, where the run's algorithm came from a file.
        env: in place of the run's own.
        trust_env: the environment may be one that a module has to be imported for.

    Raises:
        UsageError: the environment or the algorithm is code, and nobody said to run it.
        CheckpointError: it is no config of this version.
    """
    config = from_json(found.meta.get("config", {}), trust_env=trust_env or env is not None)
    config = config if env is None else replace(config, env=env)
    if not isinstance(config.algorithm, StandIn):
        return config
    options = dict(found.meta["config"]["algorithm"])
    name = options.pop("name")
    if algorithm is None:
        raise UsageError(f"the run's algorithm is from a file, so name it: --algorithm {one_line(name)}")
    return replace(config, algorithm=algorithm_from(algorithm, options))


def restored(config: Config, spec: EnvSpec, found: Checkpoint) -> Parts:
    """The parts of a run that goes on, their state and counters as they were saved.

    Raises:
        CheckpointError: what was saved is not of this config, or nobody can go on with it.
    """
    refuse_misfit(config, spec, model_tensors(found.tensors))
    theirs = found.tensors
    parts = replace(Parts.fresh(config, spec), resumables=Resumables(theirs if config.exact_resume else None))
    for name, tensor in parts.state.tensors().items():
        if name not in theirs or (theirs[name].shape, theirs[name].dtype) != (tensor.shape, tensor.dtype):
            raise _misfit(found, name)
        tensor.copy_(theirs[name])
    _refuse_other_counters(parts.counters, found)
    parts.counters.restore(theirs)
    return parts


def _refuse_other_counters(counters: SharedCounters, found: Checkpoint) -> None:
    """Refuse counters of another kind; those of more or fewer workers are of this one."""
    workers = set()
    for name, tensor in counters.tensors().items():
        saved, axis = found.tensors.get(name), {"board.counters": 0, "board.metrics": 1}.get(name)
        if saved is None or saved.dtype != tensor.dtype or saved.ndim != tensor.ndim:
            raise _misfit(found, name)
        shape = list(saved.shape)
        if axis is not None:
            workers.add(shape[axis])
            shape[axis] = counters.workers
        if shape != list(tensor.shape):
            raise _misfit(found, name)
    table = found.tensors["board.counters"].clone()
    table[:, Counter.PAUSED] = 0  # no count, and not read
    if len(workers) != 1 or bool(((table < 0) | (table > MOST_COUNTED)).any()):
        raise CheckpointError(f"{found.path} has counters that no run counts to")


def _misfit(found: Checkpoint, name: str) -> CheckpointError:
    return CheckpointError(f"{found.path} does not fit its own config: {name} is missing or of another shape")
