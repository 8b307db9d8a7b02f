"""The types that a custom algorithm or callback needs, in one module; `polyactor.data` and others define them."""

from polyactor.algorithms.base import Algorithm, Differentiate, Model, Replay
from polyactor.data import (
    Batch,
    CoreState,
    Direction,
    Distribution,
    Gradients,
    Memo,
    Metrics,
    Moments,
    Outputs,
    Rollout,
)
from polyactor.equations.schedules import anneal
from polyactor.fields import Allowed
from polyactor.training.callbacks import Callback
from polyactor.training.run import RunHandle

__all__ = [
    "Algorithm",
    "Allowed",
    "Batch",
    "Callback",
    "CoreState",
    "Differentiate",
    "Direction",
    "Distribution",
    "Gradients",
    "Memo",
    "Metrics",
    "Model",
    "Moments",
    "Outputs",
    "Replay",
    "Rollout",
    "RunHandle",
    "anneal",
]
