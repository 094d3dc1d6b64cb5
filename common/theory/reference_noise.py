"""How far ridge-corrected self-influence of one sketch is off, where that is the reference: its covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from common.theory.spectrum import Spectrum


def relative_covariance(spectrum: Spectrum, queries: Tensor, ridge: float) -> Tensor:
    """Return the (k, k) covariance over sketches of φ̂_λ(q)/φ_λ(q), the ridge-corrected estimates of self-influence.

        Cov = (2/ν) λ² ψ(q, p)² / (φ_λ(q) φ_λ(p)) ,   ν = M − d_2(λ),   ψ(q, p) = qᵀ(F+λI)⁻²p

    as the sketch itself shows ψ, φ and d_2; see sketch_law.py, with μ = λ.

    Args:
        spectrum: F as the sketch shows it.
        queries: (k, M) float64 queries in the eigenbasis of S.
        ridge: λ that the sketch resolves.

    Returns:
        float64; zero rows and columns where a query is zero.
    """
    mu = torch.tensor([ridge], dtype=torch.float64)
    psi = (queries * spectrum.resolvent_weights(2, mu)[:, 0]) @ queries.T
    influence = queries.square() @ spectrum.resolvent_weights(1, mu)[:, 0]
    inverse = torch.where(influence > 0, 1 / influence, 0)
    return 2 * spectrum.own_inverse_dof(mu) * ridge**2 * psi.square() * inverse[:, None] * inverse
