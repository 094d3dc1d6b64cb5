"""Gaussian sketches of vectors known by coordinates in an orthonormal basis: exact in law, at a cost without d."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.gradients.gram import gram_of_upper_trapezoid
from common.sketches.influence import NEGLIGIBLE, SketchedProblem


class GaussianCoordinateSketch:
    """One Gaussian sketch of vectors known by their coordinates, for every m, exact in law and without d.

    A Gaussian P (m x d) restricted to an orthonormal basis of r directions is an m x r Gaussian. Its QR factor R is
    all that scores depend on, and R is known in law (Bartlett 1933; Muirhead, Aspects of Multivariate Statistical
    Theory, 1982, theorem 3.2.14): min(m, r) x r upper trapezoidal, independent entries, R_ij ~ N(0, 1) above the
    diagonal and R_ii² ~ χ²_{m-i+1}. So neither the cost nor the storage grows with d or, above the rank, with m.
    With R = N + D (N strictly upper triangular, D diagonal) the products of N with everything are formed once and
    serve every m; sketches of different m in one trial share N.

    With coordinates ordered by eigenvalue, R leaves the leading ones in front: PFPᵀ needs only its leading block.
    """

    def __init__(self, eigenvalues: Tensor, vectors: Tensor, smallest_ridge: float, seed: int, trial: int):
        """Draw N and multiply it once.

        Args:
            eigenvalues: (r,) float64, descending, of F.
            vectors: (v, r) float64 vectors to be scored, in the eigenbasis of F.
            smallest_ridge: smallest λ that will be asked for.
            seed: random seed; with `trial` and m it determines the sketch.
            trial: index of the sketch.
        """
        self.seed, self.trial, self.coordinates = seed, trial, vectors
        self.rank = len(eigenvalues)
        used = int((eigenvalues > NEGLIGIBLE * smallest_ridge).sum())
        self.eigenvalues = eigenvalues[:used]
        upper = _strictly_upper_gaussian(self.rank, seed, trial).to(eigenvalues.device)
        self.upper_vectors = vectors @ upper.T
        root = self.eigenvalues.sqrt()
        scaled = upper[:used, :used].mul_(root)
        self.upper_fisher = gram_of_upper_trapezoid(scaled)
        # (D S Nᵀ) below the diagonal, without its factor D
        self.cross = scaled.mul_(root).T.contiguous()

    def problem(self, m: int) -> SketchedProblem:
        """Return the sketched problem of size m."""
        rows = min(m, self.rank)
        chi = np.random.default_rng([self.seed, self.trial, m]).chisquare(m - np.arange(rows)) ** 0.5
        diagonal = torch.from_numpy(chi).to(self.cross.device)
        used = min(rows, len(self.eigenvalues))
        fisher = torch.addcmul(self.upper_fisher[:used, :used], diagonal[:used, None], self.cross[:used, :used])
        fisher.diagonal().add_(diagonal[:used].square() * self.eigenvalues[:used])
        vectors = torch.addcmul(self.upper_vectors[:, :rows], diagonal, self.coordinates[:, :rows])
        # a Gaussian block of r columns has squared norm about (√m + √r)²
        growth = (1 + (self.rank / m) ** 0.5) ** 2
        return SketchedProblem(fisher.div_(m), vectors.div_(m**0.5), growth * self.eigenvalues[:used])


def _strictly_upper_gaussian(size: int, seed: int, trial: int) -> Tensor:
    """Return the (size, size) float64 N, drawn row by row: half the draws of a square, the same on every device."""
    generator = np.random.default_rng([seed, trial])
    upper = np.zeros((size, size))
    for row in range(size - 1):
        generator.standard_normal(out=upper[row, row + 1 :])
    return torch.from_numpy(upper)
