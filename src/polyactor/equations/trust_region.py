"""Steps of all parameters at once within a trust region: Fisher products, conjugate gradients, a line search.

All vectors are flat, ``[θ]``; all gradients and divergences are means over a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Product = Callable[["Tensor"], "Tensor"]
"""From a vector v to F v."""

ITERATIONS = 10
"""Of the conjugate gradients."""
DAMPING = 1e-2
"""Added to the diagonal of F, which has directions that do not change the policy."""
CUTS = 10
"""Times a step is halved before none is taken."""
SLACK = 1.5
"""A step may lead this many δ away: the quadratic model of the divergence is one."""


def fisher(kl: Tensor, theta: Sequence[Tensor], damping: float = DAMPING) -> Product:
    """Products with F, the Hessian of KL(π_old ‖ π_θ) at θ = θ_old (Pearlmutter 1994), damped.

    Args:
        kl: a scalar, differentiable twice by θ.
        theta: parameters.
        damping: of the diagonal.
    """
    from torch.autograd import grad

    slope = flat(grad(kl, theta, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        along = grad(slope @ v, theta, retain_graph=True, materialize_grads=True)
        return flat(along) + damping * v

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int = ITERATIONS, tolerance: float = 1e-10) -> Tensor:
    """x with F x = b, F positive definite (Hestenes & Stiefel 1952); until ``‖b − F x‖² ≤ tolerance · ‖b‖²``."""
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
    """Δ with the largest gᵀΔ of all with ½ ΔᵀFΔ ≤ δ: ``√(2δ / sᵀFs) s``, s = F⁻¹g (Schulman et al. 2015)."""
    s = conjugate_gradient(product, g, iterations)
    curvature = s @ product(s)
    return s * (2 * delta / curvature).sqrt() if curvature > 0 else s


def step_around(
    product: Product, g: Tensor, k: Tensor, kl: Tensor, delta: float, iterations: int = ITERATIONS
) -> Tensor:
    """Δ with the largest gᵀΔ of all with ``KL₀ + kᵀΔ + ½ ΔᵀFΔ ≤ δ``, around a policy that is not the one of now.

    ``√((2(δ − KL₀) + kᵀF⁻¹k) / (gᵀF⁻¹g)) F⁻¹g − F⁻¹k``; with k = 0 and KL₀ = 0 it is `natural_step`. Where no step ends
    within the region it is −F⁻¹k, the one that comes nearest to that policy.

    Args:
        product: F v.
        g: gradient of the objective.
        k: gradient of the divergence from that policy.
        kl: KL₀, that divergence now.
        delta: δ.
        iterations: of each of the two solutions.
    """
    ascent, back = conjugate_gradient(product, g, iterations), conjugate_gradient(product, k, iterations)
    room, gain = 2 * (delta - kl) + k @ back, g @ ascent
    if room < 0:
        return -back
    if gain <= 0:  # nothing to climb: stay, or come back
        return -back if kl > delta else back.new_zeros(back.shape)
    return (room / gain).sqrt() * ascent - back


def line_search(
    step: Tensor, theta: Sequence[Tensor], evaluate: Callable[[], tuple[float, float]], delta: float, *, climbs: bool
) -> tuple[Tensor, float]:
    """The longest of Δ, Δ/2, Δ/4, ... that may be taken, or none, and the divergence where it ends.

    One may be taken where the objective has not fallen, or if Δ does not climb, the divergence has, and where that is
    1.5 δ at most, or no more than before.

    Args:
        step: Δ.
        theta: θ.
        evaluate: objective and divergence at θ as it is then.
        delta: δ.
        climbs: Δ leads up the objective's slope; otherwise it only leads back.
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
    """θ + Δ for a while."""
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
    """One vector of all."""
    from torch import cat

    return cat([each.reshape(-1) for each in tensors])


def parts(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `flat` joined."""
    pieces = vector.split([each.numel() for each in like])  # type: ignore[no-untyped-call]
    return tuple(piece.view(each.shape) for piece, each in zip(pieces, like, strict=True))
