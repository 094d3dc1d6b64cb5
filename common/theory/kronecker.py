"""Effective dimensions of A ⊗ E, whose eigenvalues are all products a_i e_j; never the Kronecker matrix itself.

Reference: Hu, Hu, Ma, Zhao, "A Unified Theory of Random Projection for Influence Functions", arXiv 2602.10449,
theorem 6: a sketch P_A ⊗ P_E of A ⊗ E needs m_A of the order of d_{λ/‖E‖}(A) and m_E of the order of d_{λ/‖A‖}(E).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FactorisedDimensions:
    """What a decoupled sketch P_A ⊗ P_E needs of either side, up to ε⁻² and constants; float64, (ridges,) each."""

    of_a: Tensor
    """d_{λ/‖E‖}(A), with ‖E‖ the largest eigenvalue of E."""
    of_e: Tensor
    """d_{λ/‖A‖}(E)."""

    @property
    def product(self) -> Tensor:
        """d_{λ/‖E‖}(A) · d_{λ/‖A‖}(E): at least d_λ(A ⊗ E)/3 where λ <= ‖A‖‖E‖, and usually far more."""
        return self.of_a * self.of_e


def dimension_of(eigenvalues: Tensor, ridges: Tensor) -> Tensor:
    """Return the (ridges,) float64 values d_λ = Σ s/(s+λ) of eigenvalues of any shape; one λ is worked on at a time.

    Those of A ⊗ E are the products a_i e_j.
    """
    s = eigenvalues.double()
    return torch.stack([(s / (s + ridge)).sum() for ridge in ridges.tolist()])


def factorised_dimensions(a: Tensor, e: Tensor, ridges: Tensor) -> FactorisedDimensions:
    """Return what theorem 6 asks of either side; 0 where A or E is 0.

    Args:
        a: (p,) eigenvalues of A, >= 0.
        e: (q,) eigenvalues of E, >= 0.
        ridges: (ridges,) λ > 0.
    """
    return FactorisedDimensions(_scaled(a, e, ridges), _scaled(e, a, ridges))


def _scaled(one: Tensor, other: Tensor, ridges: Tensor) -> Tensor:
    # d_{λ/‖E‖}(A) = d_λ(‖E‖ A), which needs no division by ‖E‖
    return dimension_of(one.double() * other.double().max(), ridges)
