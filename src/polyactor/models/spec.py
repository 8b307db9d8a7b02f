"""The settings of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from polyactor.fields import Allowed

TorsoName = Literal[
    "auto", "mlp", "a3c-cnn", "a3c-conv", "nature-cnn", "nature-cnn-32", "nature-conv", "elu-conv", "pool-conv"
]

Channels = Literal["auto", "first", "last", "last-up-to-4"]


@dataclass(frozen=True)
class ModelSpec:
    """A network consists of a torso, which encodes observations, a core, which may have memory, and heads."""

    torso: TorsoName = "auto"
    """Encoder of observations. auto: a3c-cnn for images from 20 x 20 pixels up, else mlp; -conv: no dense layer."""
    channels: Channels = "auto"
    """Axis of an image's channels. auto: the smaller of the first and the last, if it is at most 32; last-up-to-4: the
    last if it is at most 4, else the first, as in runs of before this could be set."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer of the MLP."""
    activation: Literal["tanh", "relu", "leaky-relu"] = "tanh"
    """Activation function of the MLP; that of a CNN is part of its architecture."""
    core: Literal["none", "lstm", "gru"] = "none"
    """Memory of the network: an LSTM or a GRU, trained by backpropagation through the whole rollout."""
    core_size: Annotated[int, Allowed(1)] = 256
    """Units of the LSTM or GRU."""
    share_torso: bool = True
    """Share one torso and core between policy and value; otherwise each has its own."""
    head_width: Annotated[int | None, Allowed(1)] = None
    """Units of a ReLU layer that each head, policy and value, has before its output; none: the heads are linear."""
    value_head_width: Annotated[int | None, Allowed(1)] = None
    """Units of that layer of the value head alone; none: as many as --model.head-width."""
    log_std: Literal["free", "state", "fixed"] = "free"
    """log σ of Gaussian policies. free: one parameter per dimension; state: a function of the observation; fixed."""
    log_std_start: Annotated[float, Allowed(-5, 2)] = 0.0
    """log σ of Gaussian policies before training."""
