"""Policies that nobody has trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyactor.config import Config
from polyactor.evaluation.policy import Policy
from polyactor.models.spec import ModelSpec
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh


def config_of(env: Any, **values: Any) -> Config:
    kind = env if isinstance(env, str) else "polyactor/Chain-v0"
    return replace(base_config("a2c", env=kind), env=env, model=ModelSpec(hidden=(8,)), **values)


def untrained(env: Any, model: ModelSpec | None = None) -> Policy:
    config = config_of(env)
    config = config if model is None else replace(config, model=model)
    tensors = {name: tensor.clone() for name, tensor in fresh(config).state.views().items()}
    for name, tensor in tensors.items():
        if name.startswith("policy."):
            tensor.mul_(300.0).add_(0.1)  # far from the near-uniform start, so that actions leave their bounds
    return Policy(config, tensors)
