"""K-FAC: natural gradients by a Fisher matrix of Kronecker products, within a trust region (ACKTR, Wu et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from polyactor.equations import kronecker
from polyactor.errors import Diverged
from polyactor.fields import Allowed
from polyactor.optim.rules import Rule, Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from polyactor.optim.flat import Slot


@dataclass(frozen=True)
class Layer:
    """A layer with the weights W ``[O, I]``, whose Fisher matrix is A ⊗ G; or another parameter, with a diagonal one.

    Attributes:
        name: the name of the module, or of the parameter.
        weight: the place of the weights, or of the parameter.
        bias: the place of the bias, the last column of W; None without one.
        factored: whether the Fisher matrix is A ⊗ G.
    """

    name: str
    weight: Slot
    bias: Slot | None = None
    factored: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """O and I."""
        outputs, *inputs = self.weight.shape
        return outputs, math.prod(inputs) + (self.bias is not None)

    def of(self, vector: Tensor) -> Tensor:
        """Return the layer's part of a vector ``[θ]`` as a matrix ``[O, I]``, or in the shape of the parameter."""
        part = self.weight.view(vector)
        if not self.factored:
            return part
        matrix = part.flatten(1)
        return matrix if self.bias is None else _beside(matrix, self.bias.view(vector))

    def put(self, matrix: Tensor, vector: Tensor) -> None:
        """Write what `of` returns into its places in a vector ``[θ]``."""
        part = self.weight.view(vector)
        if self.bias is not None:
            matrix, bias = matrix[:, :-1], matrix[:, -1]
            self.bias.view(vector).copy_(bias)
        part.copy_(matrix.reshape(part.shape))


def _beside(matrix: Tensor, column: Tensor) -> Tensor:
    from torch import cat

    return cat([matrix, column.unsqueeze(1)], 1)


class Factors(dict[str, "Tensor"]):
    """The statistics of K-FAC by name, and the layers that they belong to.

    A is named ``inputs.LAYER``, G ``outputs.LAYER`` and the diagonal of another parameter ``diagonal.PARAMETER``.
    """

    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class KFAC(Rule):
    """K-FAC with a trust region: v ← m v + ν F⁻¹∇L,  θ ← θ − η (1 − m) v  (Wu et al. 2017, §3).

    F is block-diagonal, with one block A ⊗ G for each dense layer and convolution; of other parameters (log σ, norms,
    recurrent cores) it is the diagonal. All of it is a running average. ν keeps the KL of a step ηνF⁻¹∇ at κ/2.
    """

    factored: ClassVar[bool] = True

    lr: Annotated[float, Allowed(0)] = 0.25
    """Largest learning rate η at the start of the run; the trust region makes most steps smaller."""
    max_grad_norm: Annotated[float | None, Allowed(0, above=True)] = None
    """Clip the gradient to this global norm before the Fisher matrix is applied; none does not clip."""
    kl_clip: Annotated[float, Allowed(0, above=True)] = 1e-3
    """κ = 2δ, twice the largest KL divergence that a step may make, as the Fisher matrix predicts it."""
    damping: Annotated[float, Allowed(0, above=True)] = 0.01
    """λ, added to the Fisher matrix."""
    inverse: Literal["cholesky", "eigen"] = "cholesky"
    """How λ is added. cholesky: √λ to each factor, divided by π; eigen: λ to their product, by eigenvalues, which takes
    some ten times as long."""
    momentum: Annotated[float, Allowed(0, 1, below=True)] = 0.9
    """m, of the steps."""
    decay: Annotated[float, Allowed(0, 1, below=True)] = 0.99
    """Decay of the running averages of the factors, which begin as plain means."""
    factors_every: Annotated[int, Allowed(1)] = 1
    """Updates from one estimate of the factors to the next."""
    inverse_every: Annotated[int, Allowed(1)] = 10
    """Updates from one inverse of the factors to the next."""
    cold_updates: Annotated[int, Allowed(0)] = 10
    """First updates, which take plain steps, clipped to `cold_grad_norm`, while each of them estimates the factors."""
    cold_grad_norm: Annotated[float, Allowed(0, above=True)] = 0.5
    """The global norm that the gradient is clipped to in these updates."""

    def statistics(self, theta: Tensor, layers: Sequence[Layer] = ()) -> Statistics:
        """Allocate v ``[θ]``, counts, the factors of each layer and their inverses."""
        count = theta.new_zeros(()).double()
        factors = Factors(
            step=count, estimates=count.clone(), inverted=count.clone(), velocity=theta.new_zeros(theta.shape)
        )
        factors.layers = tuple(layers)
        for layer in layers:
            if not layer.factored:
                factors[f"diagonal.{layer.name}"] = theta.new_zeros(layer.weight.shape)
                continue
            o, i = layer.sizes
            sizes = {"inputs": (i, i), "outputs": (o, o), "inverse_inputs": (i, i), "inverse_outputs": (o, o)}
            if self.inverse == "eigen":
                sizes["inverse_scale"] = (o, i)
            factors.update({f"{kind}.{layer.name}": theta.new_zeros(size) for kind, size in sizes.items()})
        return factors

    def estimates_at(self, update: int) -> bool:
        """Return whether the factors are estimated at this update, counted from 0."""
        return update < self.cold_updates or update % self.factors_every == 0

    def observe(self, statistics: Statistics, estimate: Mapping[str, Tensor]) -> None:
        """Average an estimate of the factors into the statistics: ε = min(1 − 1/k, decay), A ← εA + (1 − ε)Â, G alike.

        k is the number of estimates (Martens & Grosse 2015, §5).
        """
        k = float(statistics["estimates"].add_(1))
        for name, factor in estimate.items():
            statistics[name].lerp_(factor, 1 - min(1 - 1 / k, self.decay))

    def step(self, theta: Tensor, grad: Tensor, statistics: Statistics, lr: float) -> None:
        """v ← m v + ν F⁻¹Δ,  θ ← θ − η (1 − m) v, in place; while the start is cold, Δ is clipped instead.

        Raises:
            Diverged: F⁻¹Δ is not finite; θ and v stay.
        """
        assert isinstance(statistics, Factors)
        step, velocity = statistics["step"], statistics["velocity"]
        if step < self.cold_updates or not statistics["estimates"]:
            direction = grad * (self.cold_grad_norm / (grad.norm() + 1e-6)).clamp(max=1.0)
        else:
            if not statistics["inverted"] or step + 1 - statistics["inverted"] >= self.inverse_every:
                self.invert(statistics)
                statistics["inverted"].copy_(step + 1)
            direction = self.natural(grad, statistics)
            direction *= kronecker.kl_scale(grad, direction, lr, self.kl_clip)
            if not math.isfinite(direction.sum()):
                raise Diverged(
                    "a natural gradient was not finite, so the run stopped: the inverse of the Fisher matrix is "
                    "too large for float32; raise --optimizer.damping, or --normalize.observation"
                )
        velocity.mul_(self.momentum).add_(direction)
        theta.add_(velocity, alpha=-lr * (1 - self.momentum))
        step += 1

    def invert(self, statistics: Factors) -> None:
        """Compute the inverses of all factors with their damping λ."""
        for layer in statistics.layers:
            if layer.factored:
                a, g = statistics[f"inputs.{layer.name}"], statistics[f"outputs.{layer.name}"]
                inverse = kronecker.eigen if self.inverse == "eigen" else kronecker.damped_inverses
                for kept, computed in zip(self._inverses(layer, statistics), inverse(a, g, self.damping), strict=True):
                    kept.copy_(computed)

    def natural(self, grad: Tensor, statistics: Factors) -> Tensor:
        """Return F⁻¹Δ ``[θ]`` of a gradient Δ ``[θ]``, with the inverses of the last `invert`."""
        natural = grad.new_zeros(grad.shape)
        for layer in statistics.layers:
            v = layer.of(grad)
            if not layer.factored:
                v = v / (statistics[f"diagonal.{layer.name}"] + self.damping)
            elif self.inverse == "eigen":
                v = kronecker.by_eigen(v, *self._inverses(layer, statistics))
            else:
                inverse_a, inverse_g = self._inverses(layer, statistics)
                v = (inverse_a @ v.T @ inverse_g).T  # for widths that are odd, faster than from the right
            layer.put(v, natural)
        return natural

    def _inverses(self, layer: Layer, statistics: Factors) -> list[Tensor]:
        """Return what `invert` keeps of a layer, as the functions of `kronecker` give and take it."""
        kinds = ["inverse_inputs", "inverse_outputs"] + ["inverse_scale"] * (self.inverse == "eigen")
        return [statistics[f"{kind}.{layer.name}"] for kind in kinds]
