"""What a model is made of, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from polyactor.fields import Allowed

TorsoName = Literal[
    "auto", "mlp", "a3c-cnn", "a3c-conv", "nature-cnn", "nature-cnn-32", "nature-conv", "elu-conv", "pool-conv"
]


@dataclass(frozen=True)
class ModelSpec:
    """Torso, core and heads."""

    torso: TorsoName = "auto"
    """auto: the A3C CNN for images, an MLP for vectors; a -conv ends with its convolutions, without a dense layer."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the MLP's layers."""
    activation: Literal["tanh", "relu", "leaky-relu"] = "tanh"
    """Of the MLP; the CNNs have their own."""
    core: Literal["none", "lstm"] = "none"
    """lstm: memory, trained by backpropagation through the whole rollout."""
    core_size: Annotated[int, Allowed(1)] = 256
    """Units of the LSTM."""
    share_torso: bool = True
    """One torso and core for policy and value, or one each."""
    head_width: Annotated[int | None, Allowed(1)] = None
    """Units of a ReLU layer the policy and the value have each, after torso and core; none: linear heads."""
    log_std: Literal["free", "state", "fixed"] = "free"
    """Gaussian policies: log σ as free parameters, a function of the observation, or as it starts for good."""
    log_std_start: Annotated[float, Allowed(-5, 2)] = 0.0
    """log σ before training."""
