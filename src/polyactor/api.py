"""The Python door: what the command line does, as two functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from polyactor.config import Config, check
from polyactor.envs import EnvFactory, check_env
from polyactor.errors import UsageError, suggestion
from polyactor.presets import base_config

if TYPE_CHECKING:
    from polyactor.training import Run


def train(
    preset: str = "a3c",
    *,
    env: str | EnvFactory | None = None,
    scheme: str | None = None,
    optimizer: str | None = None,
    **values: Any,
) -> Run:
    """Train and return the finished run.

    Args:
        preset: a method ("a2c", "a3c", "appo", …), a preset, or ``file.py:Class``.
        env: a Gymnasium id, ``module:Env-v0``, or a callable that returns an environment.
        scheme: "sync", "hogwild", "param-server" or "actor-learner", in place of the preset's.
        optimizer: "sgd", "rmsprop" or "adam", in place of the preset's.
        values: any field of `Config`, such as ``steps=300_000, seed=1, workers=2``; a section takes a mapping of its
            fields, such as ``algorithm={"gamma": 0.98}``.

    Raises:
        PolyactorError: whatever could not be; nothing has been created then.

    Call it under ``if __name__ == "__main__":`` in a script: workers import it.
    """
    config = configured(base_config(preset, env=env, scheme=scheme, optimizer=optimizer), values)
    check(config)
    check_env(config.env)
    from polyactor.training import train as run  # here, so that a wrong value costs no import of torch

    return run(config)


def configured(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with some fields replaced; a mapping replaces fields of a section.

    Raises:
        UsageError: there is no such field.
    """
    for name, value in values.items():
        _known(config, name, name)
        if isinstance(value, Mapping):
            section = getattr(config, name)
            for inner in value:
                _known(section, inner, f"{name}.{inner}")
            value = replace(section, **value)
        config = replace(config, **{name: value})
    return config


def _known(part: Any, name: str, path: str) -> None:
    names = [f.name for f in fields(part)]
    if name not in names:
        raise UsageError(f"there is no setting {path}{suggestion(name, names)}")
