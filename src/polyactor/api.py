"""The Python door: what the command line does, as two functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from os import PathLike, fspath
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
    scheme: str | Mapping[str, Any] | None = None,
    optimizer: str | Mapping[str, Any] | None = None,
    **values: Any,
) -> Run:
    """Train and return the finished run.

    Args:
        preset: a method ("a2c", "a3c", "appo", …), a preset, or ``file.py:Class``.
        env: a Gymnasium id, ``module:Env-v0``, or a callable that returns an environment.
        scheme: "sync", "hogwild", "param-server" or "actor-learner", in place of the preset's; or fields of it, and
            its name if it is another: ``{"name": "actor-learner", "max_lag": 2}``.
        optimizer: "sgd", "rmsprop" or "adam" in the same way, such as ``{"lr": 1e-3}``.
        values: any field of `Config`, such as ``steps=300_000, seed=1, workers=2``; a section takes a mapping of its
            fields, such as ``algorithm={"gamma": 0.98}``.

    Raises:
        PolyactorError: whatever could not be; nothing has been created then.

    Call it under ``if __name__ == "__main__":`` in a script: workers import it.
    """
    scheme, scheme_fields = _named(scheme)
    optimizer, optimizer_fields = _named(optimizer)
    config = base_config(preset, env=env, scheme=scheme, optimizer=optimizer)
    config = configured(config, {"scheme": scheme_fields, "optimizer": optimizer_fields, **values})
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
        elif isinstance(value, PathLike):
            value = fspath(value)
        config = replace(config, **{name: value})
    return config


def _named(part: str | Mapping[str, Any] | None) -> tuple[str | None, Mapping[str, Any]]:
    """Which part is meant, if any is named, and its fields that are."""
    if not isinstance(part, Mapping):
        return part, {}
    return part.get("name"), {name: value for name, value in part.items() if name != "name"}


def _known(part: Any, name: str, path: str) -> None:
    names = [f.name for f in fields(part)]
    if name not in names:
        raise UsageError(f"there is no setting {path}{suggestion(name, names)}")
