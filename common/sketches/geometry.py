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
class ScoredParts:
    """Rows that stand for the scored vectors (their coordinates, or sketches of them), part by part."""

    subset_sums: Tensor
    """(S, .) sums of the actual training gradients of each subset."""
    train: Tensor
    """(p, .) unit training gradients."""
    queries: Tensor
    """(k, .) unit query gradients."""
    kernel: Tensor
    """(k, .) part of each unit query in ker(F); (0, .) where that is not asked for."""


@dataclass(frozen=True)
class ScoredVectors:
    """Which vectors will be scored: sums over subsets, training gradients, queries, and what of these is in ker(F)."""

    query_rows: Tensor
    """(k,) int64, the rows that are queries, scaled to unit length: training rows, or rows behind them."""
    subsets: Tensor | None = None
    """(S, h) int64 training samples of each subset, whose actual gradients are summed."""
    train_rows: Tensor | None = None
    """(p,) int64, training rows that are scored with every query, scaled to unit length."""
    kernel_parts: bool = False
    """Whether the part of every query in ker(F) is scored by itself as well."""

    def split(self, vectors: Tensor) -> ScoredParts:
        """Return the rows of something known for every vector, part by part."""
        sizes = [0 if rows is None else len(rows) for rows in (self.subsets, self.train_rows, self.query_rows)]
        return ScoredParts(*vectors.split([*sizes, len(self.query_rows) if self.kernel_parts else 0]))

    @property
    def unit_rows(self) -> Tensor:
        """(p + k,) int64, the rows that are scored by themselves, scaled to unit length."""
        return self.query_rows if self.train_rows is None else torch.cat([self.train_rows, self.query_rows])

    def with_kernel_parts(self, vectors: Tensor, rank: int) -> Tensor:
        """Return coordinates of all vectors, from those of all but the kernel parts, `rank` directions in range(F)."""
        if not self.kernel_parts:
            return vectors
        kernel = vectors[len(vectors) - len(self.query_rows) :].clone()
        kernel[:, :rank] = 0
        return torch.cat([vectors, kernel])

    def weights(self, norms: Tensor) -> Tensor:
        """Return the float64 weights whose product with the (N, d) unit rows gives the vectors, without kernel parts.

        Sparse where there are no subsets. `norms` are the (N,) lengths of the gradients.
        """
        rows = self.unit_rows.to(norms.device)
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
    """(v, r) coordinates of the scored vectors, in the order of `ScoredParts`; a zero gradient stays zero."""

    @property
    def queries(self) -> Tensor:
        """(k, r) coordinates of the unit query gradients."""
        return self.scored.split(self.vectors).queries

    @property
    def train(self) -> Tensor:
        """(p, r) coordinates of the unit training gradients that are scored with every query."""
        return self.scored.split(self.vectors).train

    @property
    def subset_sums(self) -> Tensor:
        """(S, r) coordinates of the sums of the actual training gradients of each subset."""
        return self.scored.split(self.vectors).subset_sums

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
