"""Rebuilding a run from a checkpoint, whose content is checked since it may come from somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from polyactor.agent.parts import Parts
from polyactor.agent.resumables import Resumables
from polyactor.config import Config
from polyactor.envs import check_exact, env_spec
from polyactor.errors import CheckpointError, EnvironmentUnsupported, UsageError, one_line
from polyactor.evaluation.policy import model_tensors, refuse_misfit, refuse_not_finite
from polyactor.fields import expect, replace_at
from polyactor.settings.changing import changed
from polyactor.settings.check import check, settled
from polyactor.settings.registry import name_of
from polyactor.settings.serialize import StandIn, algorithm_from, from_json
from polyactor.settings.trust import handed_over, refuse_untrusted, vouched_for
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage.checkpoint import POLICY_ALONE, Checkpoint
from polyactor.storage.run_directory import run_of
from polyactor.training.run import as_written

MOST_COUNTED = 2**53
"""Largest value that a counter in a checkpoint may have."""


def refuse_inexact(config: Config) -> None:
    """Refuse a config with ``exact_resume`` whose environment cannot be saved and restored exactly.

    Raises:
        UsageError: the environment cannot be saved and restored.
    """
    if config.exact_resume:
        try:
            check_exact(
                config.environment,
                atari=config.atari,
                max_episode_steps=config.max_episode_steps,
                seconds=config.env_timeout,
            )
        except EnvironmentUnsupported as error:
            raise UsageError(f"--exact-resume is not allowed: {error}".rstrip(".")) from None


def config_of(
    found: Checkpoint, algorithm: str | None, trust_code: bool, trust_env: bool, *, callbacks: object, **handed: Any
) -> Config:
    """Return the config of a checkpoint, with the code that the caller names.

    Args:
        found: the checkpoint.
        algorithm: ``file.py:Class``, in place of the run's algorithm from a file; None takes that, if it is trusted.
        trust_code: whether code that the config names may be imported.
        trust_env: the same, for the environment and its wrappers alone.
        callbacks: what the caller hands over in place of the run's callbacks, whose code is not needed then; or None.
        handed: environment, wrappers and parts of the network in place of the saved ones, by their settings, or None.

    Raises:
        UsageError: the checkpoint holds a policy alone, the config names code that the caller has neither handed over
            nor trusted, or an argument has a wrong type.
        CheckpointError: the saved config is not valid in this version.
    """
    if found.meta.get(POLICY_ALONE):
        root = run_of(found.path)
        raise UsageError(
            f"{root} cannot be resumed: it holds a policy alone; begin a new run from it: --init-from {root}"
        )
    algorithm, trust_code = expect("algorithm", algorithm, str | None), expect("trust_code", trust_code, bool)
    given = vouched_for(trust_env, **handed, **{"callbacks": callbacks, "algorithm.name": algorithm})
    plain = found.meta.get("config", {})
    config = from_json(plain)
    refuse_untrusted(plain, trust_code, given=given, training=True)
    config = handed_over(config, **handed)
    if isinstance(config.algorithm, StandIn):
        options = dict(plain["algorithm"])
        name = options.pop("name")
        return replace(config, algorithm=algorithm_from(algorithm or name, options))
    if algorithm is not None:
        raise UsageError(
            f"--algorithm {one_line(algorithm)} is not allowed: the run goes on with its own algorithm, "
            f"{name_of('algorithm', config.algorithm)}, and only one from a file has to be named"
        )
    return config


def changes_of(config: Config, found: Checkpoint) -> dict[str, float | None]:
    """Return the settings that callbacks have changed before a checkpoint, by dotted name.

    Raises:
        CheckpointError: they are no changes that a run of this config can have.
    """
    made = found.meta.get("changes", {})
    try:
        changed(config, dict(made))
    except (UsageError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's changes are not what a run keeps: {one_line(error)}") from None
    return dict(made)


def placed(config: Config, transport: str | None, ray: Mapping[str, Any]) -> Config:
    """Return a config with its workers elsewhere.

    Args:
        config: the config of the checkpoint.
        transport: the new transport; None leaves it.
        ray: new values of settings of the section `ray`.

    Raises:
        UsageError: there is no such setting, or a value is not allowed.
    """
    new = {f"ray.{name}": value for name, value in ray.items()}
    for path, value in (new if transport is None else new | {"transport": transport}).items():
        config = replace_at(config, path, value)
    return settled(config)


def going_on(
    config: Config, found: Checkpoint, *, steps: int | None, restart: bool, quiet: bool, out: Path
) -> tuple[Config, list[str]]:
    """Return the config that a run goes on with, and sentences: what callbacks changed, and which schedules jump.

    Args:
        config: the config of the checkpoint.
        found: the checkpoint.
        steps: a new total of agent steps, or None.
        restart: turn ``exact_resume`` off.
        quiet: print nothing.
        out: the run directory.

    Raises:
        UsageError: an argument has a wrong type, or all the steps are done already.
    """
    restart, steps = expect("restart", restart, bool), expect("--steps", steps, int | None)
    total, done = config.steps, found.meta.get("agent_steps")
    made = changes_of(config, found)
    numbers = ", ".join(f"--{path.replace('_', '-')} {as_written(value)}" for path, value in made.items())
    said = [f"goes on with what callbacks have changed: {numbers}"] * bool(made)
    exact = config.exact_resume and not restart
    config = replace(config, out=str(out), quiet=expect("quiet", quiet, bool), exact_resume=exact)
    if steps is None or steps == total:
        return config, said
    if isinstance(done, int) and steps <= done:
        raise UsageError(
            f"--steps {steps} is not allowed: {done} steps are done already, and the number is the new total of the run"
        )
    before, config = config, replace(config, steps=steps)
    if isinstance(done, int) and steps > 0:
        said += _jumps(changed(before, made), changed(config, made), done)
    return config, said


def _jumps(before: Config, after: Config, done: int) -> list[str]:
    """Return a sentence with the coefficients that another total changes at once, if there are any."""
    old, new = min(1.0, done / before.steps), done / after.steps
    changed = {"--optimizer.lr": (before.optimizer.lr_at(old), after.optimizer.lr_at(new))}
    algorithms = before.algorithm.at(old), after.algorithm.at(new)
    for field in fields(after.algorithm):
        flag = f"--algorithm.{field.name.replace('_', '-')}"
        changed[flag] = getattr(algorithms[0], field.name), getattr(algorithms[1], field.name)
    numbers = {flag: pair for flag, pair in changed.items() if all(isinstance(each, float) for each in pair)}
    said = [f"{flag} {b:.3g} (it was {a:.3g})" for flag, (a, b) in numbers.items() if a != b]
    return [f"the new total stretches what is annealed: goes on with {', '.join(said)}"] if said else []


def restored(config: Config, found: Checkpoint) -> Parts:
    """Return the parts of a resumed run, with parameters, optimizer state and counters from a checkpoint.

    Raises:
        UsageError: the config cannot be run here.
        EnvironmentUnsupported: the environment cannot be made.
        CheckpointError: the tensors do not fit the config, or a counter has a value that no run reaches.
    """
    check(config)
    refuse_not_finite(found)
    spec = env_spec(config.environment, atari=config.atari, seconds=config.env_timeout)
    refuse_misfit(config, spec, model_tensors(found.tensors))
    saved = found.tensors
    parts = replace(Parts.fresh(config, spec), resumables=Resumables(saved if config.exact_resume else None))
    for name, tensor in parts.state.tensors().items():
        if name not in saved or (saved[name].shape, saved[name].dtype) != (tensor.shape, tensor.dtype):
            raise _misfit(found, name)
        tensor.copy_(saved[name])
    _refuse_other_counters(parts.counters, found)
    parts.counters.restore(saved)
    parts.counters.changes.put(changes_of(config, found))
    return parts


def _refuse_other_counters(counters: SharedCounters, found: Checkpoint) -> None:
    """Refuse saved counters that do not fit the shared counters; the number of workers may differ."""
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
    table[:, Counter.PAUSED] = 0  # a flag, neither a count nor restored
    if len(workers) != 1 or bool(((table < 0) | (table > MOST_COUNTED)).any()):
        raise CheckpointError(f"{found.path} has counters that no run counts to")


def _misfit(found: Checkpoint, name: str) -> CheckpointError:
    """Return the error for a tensor that does not fit the checkpoint's config."""
    return CheckpointError(f"{found.path} does not fit its own config: {name} is missing or of another shape")
