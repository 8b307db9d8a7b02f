"""Noisy layers, whose weights have noise of a learned size that explores (NoisyNet, Fortunato et al. 2018).

The noise of all layers of a network is one tensor with a row per environment or per actor. It is drawn once for each
rollout and is part of it, so that the rollout is differentiated at the weights that acted.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from polyactor.models.spec import NoiseKind

if TYPE_CHECKING:
    from polyactor.data import Rollout


MEAN_SIGMA = "noise_sigma"
"""The metric of every run with noisy layers: the mean of |σ|."""


class NoisyLinear(nn.Module):
    """y = (μ_W + σ_W ⊙ ε_W) x + μ_b + σ_b ⊙ ε_b, with learned μ and σ (Fortunato et al. 2018, eq. 9).

    Without noise y = μ_W x + μ_b. `weight` and `bias` are μ. The kinds of noise are subclasses.

    Args:
        inputs: p, the number of inputs.
        outputs: q, the number of outputs.
    """

    field: ClassVar[str]
    """The field of a rollout that has the noise."""
    width: int
    """n, the number of noise variables of the layer."""

    def __init__(self, inputs: int, outputs: int, bound: float, sigma: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma))
        self.noise: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., B, p]`` to ``y [..., B, q]``; torsos give ``[T·B, p]``, whose rows are T times those of B."""
        mean = linear(x, self.weight, self.bias)
        return mean if self.noise is None else mean + self.perturbation(x, self.noise)

    def perturbation(self, x: Tensor, noise: Tensor) -> Tensor:
        """Compute ``(σ_W ⊙ ε_W) x + σ_b ⊙ ε_b``, of the shape of y."""
        raise NotImplementedError

    @staticmethod
    def of_normal(epsilon: Tensor) -> Tensor:
        """Return the noise of standard normal numbers."""
        return epsilon


class Factorised(NoisyLinear):
    """ε_W = f(ε_out) f(ε_in)ᵀ and ε_b = f(ε_out) with f(x) = sgn(x) √|x| (eq. 10 and 11); a noise for each environment.

    At the start μ ~ U(±1/√p) and σ = 0.5/√p. The perturbation is computed without a matrix of noise for each row,
    ``f(ε_out) ⊙ (σ_W (f(ε_in) ⊙ x) + σ_b)``.
    """

    field = "noise"

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1 / math.sqrt(inputs), 0.5 / math.sqrt(inputs))
        self.width = inputs + outputs

    def perturbation(self, x: Tensor, noise: Tensor) -> Tensor:
        """Compute the perturbation; the noise is ``[B, p + q]``, f(ε_in) and then f(ε_out)."""
        f_in, f_out = noise.tensor_split((x.shape[-1],), -1)
        rows = x.reshape(-1, *f_in.shape)
        perturbed = linear(rows * f_in, self.weight_sigma, self.bias_sigma) * f_out
        return perturbed.reshape(*x.shape[:-1], -1)

    @staticmethod
    def of_normal(epsilon: Tensor) -> Tensor:
        """Return f(ε) = sgn(ε) √|ε|."""
        return epsilon.sign() * epsilon.abs().sqrt()


class Independent(NoisyLinear):
    """Each weight has an ε ~ N(0, 1) of its own, the same for all environments of an actor.

    At the start μ ~ U(±√(3/p)) and σ = 0.017.
    """

    field = "actor_noise"

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, math.sqrt(3 / inputs), 0.017)
        self.width = outputs * inputs + outputs

    def perturbation(self, x: Tensor, noise: Tensor) -> Tensor:
        """Compute the perturbation; the noise is ``[1, q · p + q]``, ε_W row by row and then ε_b."""
        shape = self.weight_sigma.shape
        weight, bias = noise[0].tensor_split((shape.numel(),))
        return linear(x, self.weight_sigma * weight.view(shape), self.bias_sigma * bias)


NOISY: dict[NoiseKind, type[Factorised] | type[Independent]] = {"factorised": Factorised, "independent": Independent}
"""The noisy layers by their kind of noise."""


class Noise:
    """The noise of a network's noisy layers, all of one kind, as one tensor ``[B, n]`` or ``[1, n]`` of float32.

    Args:
        layers: the noisy layers, of which there is at least one.
    """

    def __init__(self, layers: list[NoisyLinear]) -> None:
        self.layers, self.field = layers, layers[0].field
        *ends, self.width = accumulate(layer.width for layer in layers)
        """n, the number of noise variables of a row."""
        self.ends = tuple(ends)
        self.now: Tensor | None = None

    def of(self, rollout: Rollout) -> Tensor | None:
        """Return the noise that a rollout was acted with; None if it has none."""
        return cast("Tensor | None", getattr(rollout, self.field))

    def draw(self, rollout: Rollout, generator: torch.Generator) -> Tensor:
        """Draw the noise of a rollout that begins, write it to the rollout's memory and return it."""
        noise = self.of(rollout)
        assert noise is not None, "the memory of a rollout has what the model needs"
        return noise.copy_(self.layers[0].of_normal(noise.normal_(generator=generator)))

    def put(self, noise: Tensor | None) -> None:
        """Let the layers compute with this noise from now on; None: with the means μ alone."""
        if noise is self.now:
            return
        self.now = noise
        parts = [None] * len(self.layers) if noise is None else noise.tensor_split(self.ends, -1)
        for layer, part in zip(self.layers, parts, strict=True):
            layer.noise = part

    def mean_sigma(self) -> Tensor:
        """Return the mean of |σ| over all weights and biases of the layers, a scalar."""
        sigmas = [each.detach() for layer in self.layers for each in (layer.weight_sigma, layer.bias_sigma)]
        total = torch.stack([each.abs().sum() for each in sigmas]).sum()
        return total / sum(each.numel() for each in sigmas)


def noise_of(network: nn.Module) -> Noise | None:
    """Return the noise of a network's noisy layers; None if it has no such layer."""
    layers = [layer for layer in network.modules() if isinstance(layer, NoisyLinear)]
    return Noise(layers) if layers else None
