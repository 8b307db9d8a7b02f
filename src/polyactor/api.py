"""The one door to training: a config from parts and values, and everything that is done before it trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from polyactor.algorithms.base import Algorithm
from polyactor.config import TRANSPORTS, Config, Normalize, Scheme
from polyactor.envs import AtariOptions, EnvFactory, EnvSpec, Specs
from polyactor.errors import UsageError, one_line
from polyactor.fields import AUTO, replace_at
from polyactor.models.spec import ModelSpec
from polyactor.optim import Rule
from polyactor.settings.autotune import chosen
from polyactor.settings.check import check, check_values
from polyactor.settings.presets import base_config
from polyactor.settings.registry import PARTS, name_of, part
from polyactor.settings.serialize import SECTIONS
from polyactor.storage.run_directory import run_directory
from polyactor.system import forkserver

if TYPE_CHECKING:
    from polyactor.training.trainer import Run

KINDS: dict[str, type[Any]] = {"algorithm": Algorithm, "scheme": Scheme, "optimizer": Rule, **SECTIONS}
"""The sections of a config, and what each is an instance of."""
NAMED = {"model": "torso"}
"""Sections of one kind that a name stands for, and the field it is a value of."""


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
    **values: Any,
) -> Run:
    """Train and return the finished run.

    A section of the config takes a name, in place of the preset's part (``scheme="sync"``; a model's name is its
    torso); a mapping, which changes fields of the preset's (``optimizer={"lr": 1e-3}``) or, with a name in it, of
    another (``scheme={"name": "actor-learner", "max_lag": 2}``); or an instance, which replaces it whole
    (``scheme=pa.Hogwild(lock="both")``).

    Args:
        preset: a method ("a2c", "a3c", "appo", …), a preset, ``file.py:Class``, or a whole config.
        env: a Gymnasium id, ``module:Env-v0``, or a callable that returns an environment.
        algorithm: "a2c", "ppo", "vtrace", "acer" or ``file.py:Class``.
        scheme: "sync", "hogwild", "param-server" or "actor-learner".
        optimizer: "sgd", "rmsprop" or "adam".
        model: a torso, such as "nature-cnn".
        normalize: what is scaled.
        atari: preprocessing; only Atari ids read it.
        values: any other field of `Config`, such as ``steps=300_000, seed=1, workers=2``; ``workers`` and ``envs`` may
            be "auto".

    Raises:
        PolyactorError: whatever could not be; nothing has been created then.

    Call it under ``if __name__ == "__main__":`` in a script: workers import it.
    """
    look = Specs()
    auto = [name for name in AUTO if values.get(name) == "auto"]
    values = {name: value for name, value in values.items() if name not in auto}
    sections = {
        "algorithm": algorithm, "scheme": scheme, "optimizer": optimizer,
        "model": model, "normalize": normalize, "atari": atari,
    }  # fmt: skip
    config = configured(
        preset, env, {name: value for name, value in sections.items() if value is not None}, values, look
    )
    (ready,) = prepare([config], auto, look)
    from polyactor.training.trainer import train as run  # here, so that a wrong value costs no import of torch

    return run(ready.config, ready.spec, ready.reasons)


@dataclass(frozen=True)
class Ready:
    """A run that may begin.

    Attributes:
        config: checked, its numbers chosen.
        spec: what its environment looks like.
        reasons: why it has numbers that nobody set.
    """

    config: Config
    spec: EnvSpec
    reasons: Sequence[str]


def prepare(configs: Sequence[Config], auto: Collection[str], look: Specs, *, kept: bool = True) -> list[Ready]:
    """Everything that comes before training, in its one order; nothing is created on disk.

    Args:
        configs: of runs in the same environment.
        auto: the settings for which a number is chosen, of `AUTO`.
        look: gives what environments look like.
        kept: each run will need a directory of its own.

    Raises:
        UsageError: a value that cannot be.
        EnvironmentUnsupported: the environment cannot be trained in.
        RunDirectoryError: the directory is taken or cannot be written.
    """
    for config in configs:
        check_values(config)
    specs = [look(config.env, atari=config.atari) for config in configs]
    for config in configs if kept else ():
        run_directory(config)
    configs, reasons = chosen(configs, auto)
    for config in configs:
        check(config)
    if any(TRANSPORTS[config.transport].forks(config.scheme) for config in configs):
        forkserver.start_forkserver()  # it imports torch while we do
    return [Ready(config, spec, reasons) for config, spec in zip(configs, specs, strict=True)]


def configured(
    preset: str | Config,
    env: str | EnvFactory | None,
    sections: Mapping[str, Any],
    values: Mapping[str, Any],
    look: Specs,
) -> Config:
    """The config that a preset, sections (each a name, a mapping or an instance) and values describe.

    Raises:
        UsageError: there is no such name or setting, or it is none of the three.
        EnvironmentUnsupported: the environment cannot be trained in.
    """
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
        plain = fspath(value) if isinstance(value, PathLike) else tuple(value) if isinstance(value, list) else value
        config = replace_at(config, path, plain)
    return config
