"""What influence scores need of the gradients: eigenvalues of F, and coordinates of the vectors that are scored.

Coordinates are those in an orthonormal basis in which F is diagonal (basis.py). Those of the other rows are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scores are computed for λ >= RESOLUTION · tr F, see `resolved_ridge`.
RESOLUTION = 1e-12


@dataclass(frozen=True)
class ScoredVectors:
    """Which vectors will be scored: sums of training gradients over subsets, if any, then queries."""

    query_rows: Tensor
    """(k,) int64, the rows that are queries, scaled to unit length: training rows, or rows behind them."""
    subsets: Tensor | None = None
    """(S, h) int64 training samples of each subset, whose actual gradients are summed."""

    def weights(self, norms: Tensor) -> Tensor:
        """Return the (S + k, N) float64 weights whose product with the unit rows gives the vectors.

        Sparse where there are no subsets. `norms` are the (N,) lengths of the gradients.
        """
        rows = self.query_rows.to(norms.device)
        positions = torch.stack([torch.arange(len(rows), device=norms.device), rows])
        ones = torch.ones(len(rows), dtype=torch.float64, device=norms.device)
        queries = torch.sparse_coo_tensor(positions, ones, (len(rows), len(norms)), check_invariants=True)
        if self.subsets is None:
            return queries
        return torch.cat([self.subset_weights(norms), queries.to_dense()])

    def subset_weights(self, norms: Tensor) -> Tensor:
        """Return the (S, N) weights whose product with the unit rows gives the sums of the actual gradients."""
        if self.subsets is None:
            return norms.new_zeros(0, len(norms))
        weights = norms.new_zeros(len(self.subsets), len(norms))
        return weights.scatter_(1, self.subsets.to(norms.device), 1.0) * norms


@dataclass(frozen=True)
class Geometry:
    """Scored vectors in the eigenbasis of F = GᵀG/n on the joint span of what is scored and F; all float64."""

    eigenvalues: Tensor
    """(r,) eigenvalues of F, descending; exactly 0 for the last directions, which do not lie in range(F)."""
    rank: int
    """Numerical rank of the training gradients; the first `rank` directions span range(F)."""
    norms: Tensor
    """(N,) lengths of the gradients, training rows first."""
    num_train: int
    """n: the first n rows are the training gradients, the rows of G."""
    scored: ScoredVectors
    """Which vectors are scored."""
    vectors: Tensor
    """(S + k, r) coordinates of the scored vectors: subset sums, then unit queries; a zero gradient stays zero."""

    @property
    def queries(self) -> Tensor:
        """(k, r) coordinates of the unit query gradients."""
        return self.vectors[len(self.vectors) - len(self.scored.query_rows) :]

    @property
    def subset_sums(self) -> Tensor:
        """(S, r) coordinates of the sums of the actual training gradients of each subset."""
        return self.vectors[: len(self.vectors) - len(self.scored.query_rows)]

    @property
    def outside_energy(self) -> Tensor:
        """(k,) share of each query's squared length that lies outside range(F), in [0, 1]."""
        return self.queries[:, self.rank :].square().sum(1)


def resolved_ridge(trace: float) -> float:
    """Return the smallest λ for which scores mean anything, 1e-12 tr F (or tr PFPᵀ, for sketched ones).

    Every unit row is known but for a remainder of length δ: √RANK_TOLERANCE = 3e-7 in coordinates, and about 1e-7 in a
    projection, which is multiplied in float32. Split space into what is kept, with the matrix A + λI, and the rest. By
    the inverse of a block matrix the rest adds rᵀS⁻¹r to φ_λ(q), with S >= λI and r = q_rest − Bᵀ(A+λI)⁻¹ q_kept, B
    the cross block of F. Since ‖q_rest‖ <= δ and ‖Bᵀ(A+λI)⁻¹q‖² <= δ² tr(F) φ, and φ >= 1/(tr F + λ),

        0 <= rᵀS⁻¹r / φ <= 2δ² (1/φ + tr F) / λ <= 2δ² (2 tr F + λ) / λ.

    Rounding of the Gram matrix and of its factorisation, 1e-16 tr(F)/λ, is smaller. At the limit this allows 0.4 at
    worst; below 0.003 was found for spectra made to suffer, because few rows fall short by all of δ. From there on
    the error grows like 1/λ, and the Cholesky factorisation succeeds all the same.
    """
    return RESOLUTION * trace
