"""`train`, and what precedes it here and on the command line: building a config, and preparing the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polyactor.algorithms.base import Algorithm
from polyactor.config import TRANSPORTS, Config, EvaluateOptions, Normalize, RayOptions, Scheme
from polyactor.envs import AtariOptions, EnvFactory, EnvSpec, Specs, Wrapper, resolved
from polyactor.envs.environment import written
from polyactor.envs.resizing import size_of
from polyactor.envs.vector_env import VECTOR
from polyactor.errors import UsageError, one_line
from polyactor.fields import AUTO, converted, declared, expect, replace_at
from polyactor.files import same_directory
from polyactor.models.spec import ModelSpec
from polyactor.optim import Rule
from polyactor.settings.autotune import chosen
from polyactor.settings.check import check, settled
from polyactor.settings.presets import base_config
from polyactor.settings.registry import PARTS, name_of, part
from polyactor.settings.serialize import SECTIONS, refuse_unwritable
from polyactor.storage.run_directory import run_directory
from polyactor.system.descriptors import require_descriptors
from polyactor.system.forkserver import start_forkserver
from polyactor.system.interpreter import no_exit
from polyactor.system.process_state import kept_streams, kept_switches, sleeping_threads
from polyactor.system.script import refuse_run
from polyactor.system.streams import occupy_descriptors
from polyactor.training.callbacks import made, names

if TYPE_CHECKING:
    from polyactor.training.run import Run

KINDS: dict[str, type[Any]] = {"algorithm": Algorithm, "scheme": Scheme, "optimizer": Rule, **SECTIONS}
"""Sections of a config, and the class of each."""
NAMED = {"model": "torso"}
"""Sections of one class for which a name may stand, and the field that the name sets."""


@sleeping_threads()
@kept_streams()
@no_exit()
def train(
    preset: str | Config = "a3c",
    *,
    env: str | EnvFactory | None = None,
    algorithm: str | Mapping[str, Any] | Algorithm | None = None,
    scheme: str | Mapping[str, Any] | Scheme | None = None,
    optimizer: str | Mapping[str, Any] | Rule | None = None,
    model: str | Mapping[str, Any] | ModelSpec | None = None,
    normalize: Mapping[str, Any] | Normalize | None = None,
    atari: Mapping[str, Any] | AtariOptions | None = None,
    evaluate: Mapping[str, Any] | EvaluateOptions | None = None,
    ray: Mapping[str, Any] | RayOptions | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    env_wrappers: str | Wrapper | Sequence[str | Wrapper] | None = None,
    callbacks: Sequence[object] | None = None,
    **values: Any,
) -> Run:
    """Train a new run and return it when it has ended.

    Each section of the config takes one of three things. A name replaces the preset's part (``scheme="sync"``; a
    model's name is its torso). A mapping changes fields of the preset's part (``optimizer={"lr": 1e-3}``) or, with a
    name in it, of another part (``scheme={"name": "actor-learner", "max_lag": 2}``). An instance replaces the section
    (``scheme=pa.Hogwild(lock="both")``).

    In a script call it under ``if __name__ == "__main__":``. Without, it works, too, but every worker process imports
    the script as far as the first call.

    Args:
        preset: a method ("a2c", "a3c", "appo", …), a preset, an algorithm ``file.py:Class``, or a config.
        env: a Gymnasium id, ``module:name``, ``file.py:name``, or a callable that returns one environment.
        algorithm: "a2c", "ppo", "vtrace", "acer" or ``file.py:Class``.
        scheme: "sync", "hogwild", "param-server" or "actor-learner".
        optimizer: "sgd", "rmsprop", "adam" or "kfac".
        model: a torso, such as "nature-cnn"; parts of one's own as ``{"torso": Net}`` or ``{"torso": "file.py:Net"}``.
        normalize: which of observations and rewards are scaled or clipped.
        atari: preprocessing of Atari frames; other environments ignore it.
        evaluate: when evaluations end, and how many environments they make.
        ray: the cluster whose nodes have the workers, for ``transport="ray"``.
        env_kwargs: what the environment is made with: arguments of ``gymnasium.make`` or of the callable, by name.
        env_wrappers: callables that are given an environment and return one around it, or names such as
            "gymnasium.wrappers:FlattenObservation" and "file.py:name"; the first is the innermost.
        callbacks: objects with methods of `Callback`, their classes, or names as ``file.py:Class``, in the order in
            which they are called.
        values: any other field of `Config`, such as ``steps=300_000, seed=1, workers=2``; ``workers`` and ``envs`` may
            be "auto".

    Raises:
        UsageError: a setting does not exist or is not allowed; no file has been written.
        PolyactorError: any other error that kept the run from starting, or stopped it.
    """
    refuse_run()
    look = Specs(seconds) if isinstance(seconds := values.get("env_timeout"), float | int) and seconds > 0 else Specs()
    auto = [name for name in AUTO if isinstance(values.get(name), str) and values[name] == "auto"]
    values = {name: value for name, value in values.items() if name not in auto}
    if env_kwargs is not None:
        values["env_kwargs"] = written(env_kwargs)
    if env_wrappers is not None:
        one = isinstance(env_wrappers, str) or callable(env_wrappers)
        wrappers = declared(Config)["env_wrappers"].hint
        values["env_wrappers"] = expect("env_wrappers", (env_wrappers,) if one else env_wrappers, wrappers)
    if "env_resize" in values:
        values["env_resize"] = size_of(values["env_resize"])
    sections = {
        "algorithm": algorithm, "scheme": scheme, "optimizer": optimizer,
        "model": model, "normalize": normalize, "atari": atari, "evaluate": evaluate, "ray": ray,
    }  # fmt: skip
    config = configured(
        preset, env, {name: value for name, value in sections.items() if value is not None}, values, look
    )
    (ready,) = prepare([config], auto, look, callbacks=callbacks)
    from polyactor.training.trainer import train as run  # here, so that a wrong value costs no import of torch

    return run(ready.config, ready.spec, ready.reasons, ready.callbacks)


@dataclass(frozen=True)
class Ready:
    """A run that is ready to train.

    Attributes:
        config: the run's config, checked and without ``auto``.
        spec: what the environment looks like: spaces and limits.
        reasons: a sentence for each number that was chosen automatically, and for pictures that are read by an MLP.
        callbacks: the objects that are told of the run's events.
    """

    config: Config
    spec: EnvSpec
    reasons: Sequence[str]
    callbacks: Sequence[object]


def prepare(
    configs: Sequence[Config],
    auto: Collection[str],
    look: Specs,
    *,
    kept: bool = True,
    callbacks: Sequence[object] | None = None,
) -> list[Ready]:
    """Check configs, look at their environments and choose automatic numbers; no file is written.

    Args:
        configs: the configs of runs in the same environment.
        auto: the settings to choose a number for, of "workers" and "envs".
        look: returns what an environment looks like, and remembers it.
        kept: whether each run will need a run directory, and its callbacks.
        callbacks: objects in place of the callbacks that the configs name.

    Raises:
        UsageError: a setting has a value that is not allowed.
        EnvironmentUnsupported: the environment cannot be trained in.
        RunDirectoryError: a run directory is taken or cannot be written.
    """
    occupy_descriptors()
    configs = [_anywhere(settled(config)) for config in configs]
    specs = [look(config.environment, atari=config.atari) for config in configs]
    told = [config.callbacks if callbacks is None else callbacks for config in configs]
    configs = [replace(config, callbacks=names(own)) for config, own in zip(configs, told, strict=True)]
    for config in configs if kept else ():
        run_directory(config)
    with same_directory(), kept_switches():
        configs, reasons = chosen(configs, auto)
    for config in configs:
        check(config)
        refuse_unwritable(config)
    told = [made(own) if kept else () for own in told]
    workers = [config.workers for config in configs if TRANSPORTS[config.transport].forks(config.scheme)]
    if workers:
        require_descriptors(max(workers))
        with suppress(OSError):  # workers are then started in another way
            start_forkserver()  # imports torch in parallel with this process
    runs = list(zip(configs, specs, told, strict=True))
    return [Ready(config, spec, [*reasons, *_flattened(config, spec)], own) for config, spec, own in runs]


def _anywhere(config: Config) -> Config:
    """Return a config whose names of files and modules mean the same in every working directory."""
    env, *wrappers = (resolved(each) if isinstance(each, str) else each for each in (config.env, *config.env_wrappers))
    for name, value in config.model.own.items():
        if isinstance(value, str):
            config = replace_at(config, f"model.{name}", resolved(value))
    return replace(config, env=env, env_wrappers=tuple(wrappers))


def _flattened(config: Config, spec: EnvSpec) -> list[str]:
    """Return sentences about observations: pictures that are read by an MLP, and texts that are left out."""
    import torch  # only now that the fork server imports it, too

    from polyactor.models.encoders import flattening

    said = []
    for name, box in spec.entries.items():
        dtype = torch.uint8 if box.dtype == np.uint8 else torch.float32
        hidden = spec.hidden if name in ("", VECTOR) else ()
        said.append(flattening(box.shape, dtype, config.model, hidden))
    if spec.dropped:
        said.append(f"observations have texts, which are left out: {one_line(', '.join(spec.dropped), most=80)}")
    return [each for each in said if each is not None]


def configured(
    preset: str | Config,
    env: str | EnvFactory | None,
    sections: Mapping[str, Any],
    values: Mapping[str, Any],
    look: Specs,
) -> Config:
    """Return the config that a preset, sections and values describe.

    Args:
        preset: a method, a preset, an algorithm ``file.py:Class``, or a config.
        env: the environment, in place of the preset's.
        sections: a name, a mapping or an instance for each section, as `train` takes them.
        values: settings by dotted path.
        look: returns what an environment looks like, and remembers it.

    Raises:
        UsageError: there is no such name or setting, or a section is neither a name, a mapping nor an instance.
        EnvironmentUnsupported: the environment cannot be trained in.
    """
    preset = converted(preset, str | Config)
    parts, settings = dict[str, Any](), dict[str, Any]()  # what replaces a section, and what changes one value
    for section, value in sections.items():
        name = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(name, KINDS[section]) or (isinstance(name, str) and section in PARTS):
            parts[section] = name
        elif isinstance(name, str) and section in NAMED:
            settings[f"{section}.{NAMED[section]}"] = name
        elif name is not None:
            names = "a name, " if section in {*PARTS, *NAMED} else ""
            raise UsageError(
                f"{section} {one_line(name, most=80)} is not allowed: it must be {names}a mapping of its fields, "
                f"or an instance of {KINDS[section].__name__}"
            )
        if isinstance(value, Mapping):
            settings |= {f"{section}.{field}": each for field, each in value.items() if field != "name"}
    picked = {kind: parts.pop(kind) for kind in PARTS if kind in parts}
    if isinstance(preset, Config):
        config = preset if env is None else replace(preset, env=env)
        for kind, value in picked.items():
            if value != name_of(kind, getattr(config, kind)):
                config = replace(config, **{kind: part(kind, value)() if isinstance(value, str) else value})
    elif isinstance(preset, str):
        made = {name: values[name] for name in ("env_kwargs", "env_wrappers", "env_resize") if name in values}
        own = parts["model"].noisy if "model" in parts else None
        noisy = {**settings, **values}.get("model.noisy", own)
        config = base_config(preset, env=env, look=look, noisy=noisy, **made, **picked)
    else:
        raise UsageError(f"preset {one_line(preset, most=80)} is not allowed: it must be a name or a Config")
    for path, value in {**parts, **settings, **values}.items():
        config = replace_at(config, path, value)
    return config
