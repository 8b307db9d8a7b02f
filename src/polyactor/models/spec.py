"""The settings of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from polyactor.fields import Allowed, NameOrCode, is_code

TORSOS = NameOrCode(
    (
        *("auto", "mlp", "a3c-cnn", "a3c-conv", "nature-cnn", "nature-cnn-32", "nature-conv", "impala-cnn"),
        *("elu-conv", "pool-conv"),
    )
)
CODE = ("torso", "core", "network")
"""Settings that may be code of one's own."""

NoiseKind = Literal["factorised", "independent"]
Channels = Literal["auto", "first", "last", "last-up-to-4"]


@dataclass(frozen=True)
class ModelSpec:
    """A network consists of a torso, which encodes observations, a core, which may have memory, and heads."""

    torso: Annotated[str | Callable[..., Any], TORSOS] = "auto"
    """Encoder of observations. auto: a3c-cnn for images from 20 x 20 pixels up, else mlp; -conv: no dense layer; or
    file.py:name of your own."""
    channels: Channels = "auto"
    """Axis of an image's channels. auto: the smaller of the first and the last, if it is at most 32; last-up-to-4: the
    last if it is at most 4, else the first, as in runs of before this could be set."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer of the MLP."""
    activation: Literal["tanh", "relu", "leaky-relu"] = "tanh"
    """Activation function of the MLP; that of a CNN is part of its architecture."""
    norm: Literal["none", "layer", "weight"] = "none"
    """layer: layer norm before the activation of each hidden dense layer, and in an LSTM or GRU. weight: weight norm of
    each dense layer and convolution. Parts of your own have neither."""
    core: Annotated[str | Callable[..., Any], NameOrCode(("none", "lstm", "gru"))] = "none"
    """Memory of the network: an LSTM or a GRU, trained by backpropagation through the whole rollout; or file.py:name of
    your own."""
    core_size: Annotated[int, Allowed(1)] = 256
    """Units of the LSTM or GRU."""
    network: Annotated[str | Callable[..., Any] | None, NameOrCode()] = None
    """A whole network of your own, file.py:name, in place of torso, core and heads."""
    share_torso: bool = True
    """Share one torso and core between policy and value; otherwise each has its own."""
    head_width: Annotated[int | None, Allowed(1)] = None
    """Units of a ReLU layer that each head, policy and value, has before its output; none: the heads are linear."""
    value_head_width: Annotated[int | None, Allowed(1)] = None
    """Units of that layer of the value head alone; none: as many as --model.head-width."""
    distribution: Literal["gaussian", "beta", "squashed"] = "gaussian"
    """Distribution of the numbers in actions. gaussian: normal, and clipped at the bounds; beta: within the bounds, by
    α and β that are functions of the observation; squashed: the tanh of a normal one."""
    noisy: Literal["none", "heads", "dense"] = "none"
    """Noise on weights, which explores (NoisyNet): of the layers of policy and value (heads), or of all fully connected
    layers but those of the core (dense). σ of the noise is learned, and entropy-coef is 0 by default."""
    noisy_kind: NoiseKind = "factorised"
    """factorised: each environment has noise of its own, an outer product in each layer; independent: all environments
    of an actor share noise, in which each weight has a number of its own, as in the paper's A3C."""
    log_std: Literal["free", "state", "fixed"] = "free"
    """log σ of Gaussian policies. free: one parameter per dimension; state: a function of the observation; fixed."""
    log_std_start: Annotated[float, Allowed(-5, 2)] = 0.0
    """log σ of Gaussian policies before training."""

    @property
    def head_noise(self) -> NoiseKind | None:
        """The kind of noise in the layers of the heads, or None."""
        return None if self.noisy == "none" else self.noisy_kind

    @property
    def torso_noise(self) -> NoiseKind | None:
        """The kind of noise in the fully connected layers of the torso, or None."""
        return self.noisy_kind if self.noisy == "dense" else None

    @property
    def own(self) -> Mapping[str, str | Callable[..., Any]]:
        """The parts of one's own, by setting: callables, or their names as ``file.py:name`` or ``module:name``."""
        values = {name: getattr(self, name) for name in CODE}
        return {name: value for name, value in values.items() if is_code(value) or callable(value)}
