"""polyactor: the asynchronous actor-critic family, any algorithm under any scheme.

>>> import polyactor as pa
>>> run = pa.train("a3c", env="CartPole-v1", steps=300_000, seed=1)
>>> policy = pa.load(run.path)
>>> action = policy.act(observation)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyactor.algorithms import A2C
    from polyactor.api import train
    from polyactor.config import Config, Normalize
    from polyactor.envs import AtariOptions, make_envs
    from polyactor.errors import PolyactorError
    from polyactor.evaluate import Evaluation
    from polyactor.models.spec import ModelSpec
    from polyactor.optim import SGD, Adam, RMSprop
    from polyactor.plot import curve
    from polyactor.policy import Policy, load
    from polyactor.schemes import Hogwild, Sync
    from polyactor.training import Run, resume
    from polyactor.types import Algorithm, Batch, Rollout

_HOMES = {
    "A2C": "algorithms", "Adam": "optim", "Algorithm": "types", "AtariOptions": "envs", "Batch": "types",
    "Config": "config", "Evaluation": "evaluate", "Hogwild": "schemes", "ModelSpec": "models.spec",
    "Normalize": "config", "Policy": "policy", "PolyactorError": "errors", "RMSprop": "optim", "Rollout": "types",
    "Run": "training", "SGD": "optim", "Sync": "schemes", "curve": "plot", "load": "policy",
    "make_envs": "envs", "resume": "training", "train": "api",
}  # fmt: skip
"""Where each public name lives; loaded on first use, so that the command line starts without torch."""

__all__ = [
    "A2C",
    "SGD",
    "Adam",
    "Algorithm",
    "AtariOptions",
    "Batch",
    "Config",
    "Evaluation",
    "Hogwild",
    "ModelSpec",
    "Normalize",
    "Policy",
    "PolyactorError",
    "RMSprop",
    "Rollout",
    "Run",
    "Sync",
    "curve",
    "load",
    "make_envs",
    "resume",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyactor' has no attribute '{name}'")
    return getattr(import_module(f"polyactor.{_HOMES[name]}"), name)
