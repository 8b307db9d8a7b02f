"""The types that a custom algorithm needs, in one module; `polyactor.data` and other modules define them."""

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

__all__ = [
    "Algorithm",
    "Allowed",
    "Batch",
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
    "anneal",
]
