"""`train`, and what precedes it here and on the command line: building a config, and preparing the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polyactor.algorithms.base import Algorithm
from polyactor.config import TRANSPORTS, Config, EvaluateOptions, Normalize, Scheme
from polyactor.envs import AtariOptions, EnvFactory, EnvSpec, Specs, resolved
from polyactor.errors import UsageError, one_line
from polyactor.fields import AUTO, converted, replace_at
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
from polyactor.system.process_state import kept_streams, kept_switches
from polyactor.system.script import refuse_run
from polyactor.system.streams import occupy_descriptors

if TYPE_CHECKING:
    from polyactor.training.trainer import Run

KINDS: dict[str, type[Any]] = {"algorithm": Algorithm, "scheme": Scheme, "optimizer": Rule, **SECTIONS}
"""Sections of a config, and the class of each."""
NAMED = {"model": "torso"}
"""Sections of one class for which a name may stand, and the field that the name sets."""


@kept_streams()
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
        optimizer: "sgd", "rmsprop" or "adam".
        model: a torso, such as "nature-cnn".
        normalize: which of observations and rewards are scaled or clipped.
        atari: preprocessing of Atari frames; other environments ignore it.
        evaluate: when evaluations end, and how many environments they make.
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
    sections = {
        "algorithm": algorithm, "scheme": scheme, "optimizer": optimizer,
        "model": model, "normalize": normalize, "atari": atari, "evaluate": evaluate,
    }  # fmt: skip
    config = configured(
        preset, env, {name: value for name, value in sections.items() if value is not None}, values, look
    )
    (ready,) = prepare([config], auto, look)
    from polyactor.training.trainer import train as run  # here, so that a wrong value costs no import of torch

    return run(ready.config, ready.spec, ready.reasons)


@dataclass(frozen=True)
class Ready:
    """A run that is ready to train.

    Attributes:
        config: the run's config, checked and without ``auto``.
        spec: what the environment looks like: spaces and limits.
        reasons: a sentence for each number that was chosen automatically, and for pictures that are read by an MLP.
    """

    config: Config
    spec: EnvSpec
    reasons: Sequence[str]


def prepare(configs: Sequence[Config], auto: Collection[str], look: Specs, *, kept: bool = True) -> list[Ready]:
    """Check configs, look at their environments and choose automatic numbers; no file is written.

    Args:
        configs: the configs of runs in the same environment.
        auto: the settings to choose a number for, of "workers" and "envs".
        look: returns what an environment looks like, and remembers it.
        kept: whether each run will need a run directory.

    Raises:
        UsageError: a setting has a value that is not allowed.
        EnvironmentUnsupported: the environment cannot be trained in.
        RunDirectoryError: a run directory is taken or cannot be written.
    """
    occupy_descriptors()
    configs = [
        replace(config, env=resolved(config.env)) if isinstance(config.env, str) else config for config in configs
    ]
    configs = [settled(config) for config in configs]
    specs = [look(config.env, atari=config.atari) for config in configs]
    for config in configs if kept else ():
        run_directory(config)
    with same_directory(), kept_switches():
        configs, reasons = chosen(configs, auto)
    for config in configs:
        check(config)
        refuse_unwritable(config)
    workers = [config.workers for config in configs if TRANSPORTS[config.transport].forks(config.scheme)]
    if workers:
        require_descriptors(max(workers))
        with suppress(OSError):  # workers are then started in another way
            start_forkserver()  # imports torch in parallel with this process
    pairs = list(zip(configs, specs, strict=True))
    return [Ready(config, spec, [*reasons, *_flattened(config, spec)]) for config, spec in pairs]


def _flattened(config: Config, spec: EnvSpec) -> list[str]:
    """Return a sentence where observations that may be pictures are read by an MLP."""
    import torch  # only now that the fork server imports it, too

    from polyactor.models.encoders import flattening

    dtype = torch.uint8 if spec.bytes else torch.float32
    said = flattening(spec.observation_space.shape, dtype, config.model, spec.hidden)
    return [] if said is None else [said]


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
        config = base_config(preset, env=env, look=look, **picked)
    else:
        raise UsageError(f"preset {one_line(preset, most=80)} is not allowed: it must be a name or a Config")
    for path, value in {**parts, **settings, **values}.items():
        config = replace_at(config, path, value)
    return config
