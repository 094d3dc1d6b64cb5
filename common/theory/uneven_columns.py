"""Whether the columns of a store are alike enough for the laws of a Gaussian sketch: the store itself shows it.

Column b of a store (row b of P) sees F through its own entry of the resolvent, w_b = [(S + κI)⁻¹]_bb: 1/w_b acts like
the ridge of this column, and the mean of w_b is 1/μ. Where P can be rotated the eigenvectors of S are uniform, so that
only chance tells columns apart:

    Var w_b = 2/(M+2) Var_j 1/(t_j+κ)          over eigenvectors, t_j the eigenvalues of S.

An SJLT whose buckets hold few parameters that matter, or columns that were scaled, have more. With e the excess over
that, relative to (mean w_b)², error bars were too short by a factor from 1, where parameters are alike and only their
number in a bucket varies, to about √(1+e), where they differ (SJLTs of 2 to 150 parameters a bucket, columns over three
decades, rank-one layers and sparse rows, d_λ up to 0.8 M; 1.39 at e = 0.69, 1.62 at e = 0.87).
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.theory.sketched_spectrum import SketchedSpectrum

# error bars too short by a twentieth at most; and no more than this many times what chance has, for few columns
MOST_UNEVEN = 0.1
MOST_BY_CHANCE = 4.0


def unevenness(spectrum: SketchedSpectrum, basis: Tensor, ridges: Tensor) -> Tensor:
    """Return e at (cells,) ridges μ, 0 where chance explains it; NaN where μ is not resolved.

    Args:
        spectrum: F as S shows it.
        basis: (M, M') eigenvectors as `eigenbasis` returns them; columns that are zero do not count.
        ridges: μ.
    """
    w = 1 / (spectrum.eigenvalues[:, None] + spectrum.solve_of_ridge(ridges))
    own = (basis.square() @ w)[basis.any(dim=1)]
    chance = 2 / (len(own) + 2) * w.var(0, correction=0)
    found = own.var(0, correction=0)
    excess = torch.where(found > MOST_BY_CHANCE * chance, found - chance, 0)
    return excess / w.mean(0).square()
