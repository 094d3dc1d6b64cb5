"""Whether all rows of a store have a constant added to every column, which no projection does.

Such a store has an eigenvector of S along u = (1, .., 1)/√M, and d_λ counts it. Where P can be rotated u is any unit
vector among the eigenvectors of S, and uᵀS(S+κI)⁻¹u a mean of a_j = t_j/(t_j+κ) with weights that are squared normal
numbers x_j over their sum, so that

    P[uᵀS(S+κI)⁻¹u >= α] = P[Σ (a_j − α) x_j² >= 0] <= min_θ Π (1 − 2θ (a_j − α))^(−1/2) ,   0 <= 2θ < 1/(max a_j − α) .

The entries of uᵀP are signs for an SJLT, whose tails are shorter. For a tensorsketch they are products of two, with
longer ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.theory.sketched_spectrum import SketchedSpectrum

_STEPS = 50


def constant_by_chance(spectrum: SketchedSpectrum, basis: Tensor, ridges: Tensor) -> Tensor:
    """Return (cells,) upper bounds of the probability of so much of S along u by chance; NaN where μ is not resolved.

    Args:
        spectrum: F as S shows it.
        basis: (M, M') eigenvectors as `eigenbasis` returns them; columns that are zero do not count.
        ridges: μ.
    """
    t = spectrum.eigenvalues[:, None]
    share = t / (t + spectrum.solve_of_ridge(ridges))
    weights = basis.sum(0).square() / basis.shape[1]
    over = share - weights @ share
    # θ as a part of the largest that it may be: 0 gives the bound 1
    theta = torch.arange(_STEPS, dtype=torch.float64)[:, None, None] / _STEPS / over.max(0).values.clamp(min=1e-300)
    bounds = torch.log1p(-theta * over).sum(1) / -2
    return bounds.min(0).values.exp()
