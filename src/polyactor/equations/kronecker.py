"""The Fisher matrix of a layer as a Kronecker product, and the natural gradient by it (K-FAC).

A layer maps inputs a to s = W ā, where ā is a with a 1 appended if the layer has a bias. Let g be the gradient of
log p(y|x) by s, for targets y that are sampled from the model's own p(·|x), not averaged over rows. The Fisher matrix
of vec(W) is taken to be A ⊗ G with A = E[āāᵀ] and G = E[ggᵀ], so that F⁻¹ vec(V) = vec(G⁻¹ V A⁻¹).

The equations are those of Martens & Grosse 2015 (arXiv:1503.05671) and, for convolutions, Grosse & Martens 2016
(arXiv:1602.01573). Gradients V and weights W are ``[O, I]``, A is ``[I, I]`` and G is ``[O, O]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-12
"""Traces are taken to be at least this, so that a layer that no gradient reaches has a finite π."""
BLOCK = 256
"""Columns of the blocks that products of a matrix with itself are computed in."""


def second_moment(x: Tensor) -> Tensor:
    """Σ_n x_n x_nᵀ of rows ``[N, D]``, ``[D, D]``."""
    return _write_moment(x, x.new_empty((x.shape[1], x.shape[1])))


def homogeneous_moment(x: Tensor) -> Tensor:
    """Σ_n x̄_n x̄_nᵀ of rows ``[N, D]`` with a 1 appended, ``[D+1, D+1]``."""
    moment = x.new_empty((x.shape[1] + 1, x.shape[1] + 1))
    _write_moment(x, moment[:-1, :-1])
    moment[-1, :-1] = moment[:-1, -1] = x.sum(0)
    moment[-1, -1] = len(x)
    return moment


def _write_moment(x: Tensor, moment: Tensor) -> Tensor:
    """Write Σ_n x_n x_nᵀ to a matrix: the blocks from the diagonal to the right; those below are their transposes."""
    for i in range(0, len(moment), BLOCK):
        j = i + BLOCK
        moment[i:j, i:] = x[:, i:j].T @ x[:, i:]
        moment[j:, i:j] = moment[i:j, j:].T
    return moment


def pi(a: Tensor, g: Tensor) -> Tensor:
    """π = √((tr A / dim A) / (tr G / dim G)), which divides damping between A and G (Martens & Grosse, §6.3)."""
    return (a.trace().clamp(min=SMALLEST) / len(a) * len(g) / g.trace().clamp(min=SMALLEST)).sqrt()


def damped_inverses(a: Tensor, g: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹, the factored Tikhonov damping of Martens & Grosse, §6.3.

    Args:
        a: A.
        g: G.
        damping: λ.
    """
    π, root = pi(a, g), damping**0.5
    return _inverse(a, π * root), _inverse(g, root / π)


def _inverse(factor: Tensor, damping: Tensor) -> Tensor:
    """(factor + damping I)⁻¹ by Cholesky's decomposition in float64, which needs less of a damping than float32.

    Where rounding in float32 has made an eigenvalue of the factor more negative than that, it counts as 0.
    """
    from torch import float64
    from torch.linalg import cholesky_ex, eigh

    damped = factor.to(float64, copy=True)
    damped.diagonal().add_(damping)
    lower, failed = cholesky_ex(damped)
    if failed:
        d, q = eigh(factor.to(float64))
        inverse: Tensor = q / (d.clamp(min=0) + damping) @ q.T
    else:
        inverse = lower.to(factor.dtype).cholesky_inverse()
    return inverse.to(factor.dtype)


def eigen(a: Tensor, g: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q_A, Q_G and 1/(d_G d_Aᵀ + λ), where A = Q_A diag(d_A) Q_Aᵀ and G = Q_G diag(d_G) Q_Gᵀ.

    With them λ is added to the product itself, (A ⊗ G + λI)⁻¹, rather than to its factors.
    """
    from torch.linalg import eigh

    (d_a, q_a), (d_g, q_g) = eigh(a.double()), eigh(g.double())
    scale = 1 / (d_g.clamp(min=0).unsqueeze(1) * d_a.clamp(min=0) + damping)
    return q_a.to(a.dtype), q_g.to(a.dtype), scale.to(a.dtype)


def by_eigen(v: Tensor, q_a: Tensor, q_g: Tensor, scale: Tensor) -> Tensor:
    """(A ⊗ G + λI)⁻¹ vec(V) as a matrix, Q_G ((Q_Gᵀ V Q_A) ⊙ 1/(d_G d_Aᵀ + λ)) Q_Aᵀ; the arguments are `eigen`'s."""
    return q_g @ ((q_g.T @ v @ q_a) * scale) @ q_a.T


def kl_scale(gradient: Tensor, natural: Tensor, lr: float, kl_clip: float) -> Tensor:
    """ν = min(1, √(κ / (η² ∇ᵀF⁻¹∇))), so that the step −ην F⁻¹∇ changes the model by a KL of at most κ/2.

    For a step Δ the divergence is about ½ ΔᵀFΔ; κ is 2δ of Wu et al. 2017 (arXiv:1708.05144), §3. The sum is in
    float64, which holds the squares of all float32 numbers.

    Args:
        gradient: ∇, of any shape.
        natural: F⁻¹∇, of the same shape.
        lr: η.
        kl_clip: κ.
    """
    decrease = (gradient.double() * natural.double()).sum() * lr**2
    return (kl_clip / decrease.clamp(min=SMALLEST**2)).sqrt().clamp(max=1.0)
