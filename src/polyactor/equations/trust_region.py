"""Natural-gradient steps within a trust region: products with the Fisher matrix, conjugate gradients, a line search.

Vectors are flat over all parameters, ``[θ]``; gradients and divergences are means over a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Product = Callable[["Tensor"], "Tensor"]
"""A function from a vector v ``[θ]`` to F v ``[θ]``, where F is the Fisher matrix."""

ITERATIONS = 10
"""Iterations of conjugate gradients."""
DAMPING = 1e-2
"""Added to the diagonal of F, which is singular in directions that do not change the policy."""
CUTS = 10
"""Step lengths that the line search tries, each half the one before."""
SLACK = 1.5
"""The line search accepts divergences up to this many δ, since the step was sized by a quadratic model of them."""


def fisher(kl: Tensor, theta: Sequence[Tensor], damping: float = DAMPING) -> Product:
    """Return the product with the damped Fisher matrix F, the Hessian of KL(π_old ‖ π_θ) at θ_old (Pearlmutter 1994).

    Args:
        kl: KL(π_old ‖ π_θ), a scalar that is twice differentiable by θ.
        theta: the parameters θ.
        damping: a number added to the diagonal of F.
    """
    from torch.autograd import grad

    slope = flat(grad(kl, theta, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        along = grad(slope @ v, theta, retain_graph=True, materialize_grads=True)
        return flat(along) + damping * v

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int = ITERATIONS, tolerance: float = 1e-10) -> Tensor:
    """Solve F x = b for x by conjugate gradients (Hestenes & Stiefel 1952); F must be positive definite.

    Args:
        product: v to F v.
        b: the right side.
        iterations: the most iterations.
        tolerance: stop when ``‖b − F x‖² ≤ tolerance · ‖b‖²``.
    """
    x, residual, direction = b.new_zeros(b.shape), b.clone(), b.clone()
    squared = residual @ residual
    enough = tolerance * squared
    for _ in range(iterations):
        if squared <= enough:
            break
        along = product(direction)
        length = squared / (direction @ along)
        x, residual = x + length * direction, residual - length * along
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x


def natural_step(product: Product, g: Tensor, delta: float, iterations: int = ITERATIONS) -> Tensor:
    """``Δ = √(2δ / sᵀFs) s`` with s = F⁻¹g, the step of largest gᵀΔ with ½ ΔᵀFΔ ≤ δ (Schulman et al. 2015)."""
    s = conjugate_gradient(product, g, iterations)
    curvature = s @ product(s)
    return s * (2 * delta / curvature).sqrt() if curvature > 0 else s


def step_around(
    product: Product, g: Tensor, k: Tensor, kl: Tensor, delta: float, iterations: int = ITERATIONS
) -> Tensor:
    """Return the step Δ with the largest gᵀΔ within a trust region around another policy than the current one.

    The region is ``KL₀ + kᵀΔ + ½ ΔᵀFΔ ≤ δ``, and the step ``√((2(δ − KL₀) + kᵀF⁻¹k) / (gᵀF⁻¹g)) F⁻¹g − F⁻¹k``. With
    k = 0 and KL₀ = 0 this is `natural_step`. If no step leads into the region, Δ is −F⁻¹k, which comes nearest to it.

    Args:
        product: v to F v.
        g: gradient of the objective.
        k: gradient of the divergence of the current policy from the centre of the region.
        kl: KL₀, the divergence before the step.
        delta: δ, the radius of the region.
        iterations: the most iterations of conjugate gradients for each of F⁻¹g and F⁻¹k.
    """
    ascent, back = conjugate_gradient(product, g, iterations), conjugate_gradient(product, k, iterations)
    room, gain = 2 * (delta - kl) + k @ back, g @ ascent
    if room < 0:
        return -back
    if gain <= 0:  # g is 0: stay, or go back into the region
        return -back if kl > delta else back.new_zeros(back.shape)
    return (room / gain).sqrt() * ascent - back


def line_search(
    step: Tensor, theta: Sequence[Tensor], evaluate: Callable[[], tuple[float, float]], delta: float, *, climbs: bool
) -> tuple[Tensor, float]:
    """Return the longest acceptable of Δ, Δ/2, Δ/4, … (0 if none is) and the divergence after it.

    A step is acceptable if it does not lower the objective (for a step that does not climb: if it lowers the
    divergence), and if the divergence after it is at most 1.5 δ or that before it.

    Args:
        step: Δ, ``[θ]``.
        theta: the parameters θ, which are changed during the search and restored.
        evaluate: computes objective and divergence from the values that θ has when it is called.
        delta: δ, the radius of the trust region.
        climbs: whether Δ is a direction in which the objective grows; otherwise Δ only leads back into the region.
    """
    start, before = evaluate()
    for _ in range(CUTS):
        with displaced(theta, step):
            reached, after = evaluate()
        better = reached >= start if climbs else after < before
        if better and after <= max(SLACK * delta, before):
            return step, after
        step = step / 2
    return step.new_zeros(step.shape), before


@contextmanager
def displaced(theta: Sequence[Tensor], step: Tensor) -> Iterator[None]:
    """Add Δ ``[θ]`` to the parameters within a ``with`` block, and restore them after it."""
    from torch import no_grad

    before = [each.detach().clone() for each in theta]
    with no_grad():
        for each, change in zip(theta, parts(step, theta), strict=True):
            each.add_(change)
        try:
            yield
        finally:
            for each, value in zip(theta, before, strict=True):
                each.copy_(value)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Flatten and concatenate tensors to one vector ``[θ]``."""
    from torch import cat

    return cat([each.reshape(-1) for each in tensors])


def parts(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Split a vector ``[θ]`` into tensors of the shapes of `like`; this is the inverse of `flat`."""
    pieces = vector.split([each.numel() for each in like])  # type: ignore[no-untyped-call]
    return tuple(piece.view(each.shape) for piece, each in zip(pieces, like, strict=True))
