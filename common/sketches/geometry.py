"""Orthonormal coordinates of every gradient, the eigenvalues of F, and the effective dimension.

All that influence scores need of the gradients is their inner products. So the (N, N) Gram matrix of the unit
gradients is factored once, and every gradient becomes at most N float64 numbers instead of d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.linalg import lapack
from torch import Tensor

# A row of the unit Gram matrix whose remaining squared length falls below this is taken to lie in the span of the
# rows before it: inner products of unit rows carry rounding errors of a few 1e-16, times the number of rows.
RANK_TOLERANCE = 1e-13
# Scores are computed for λ >= RESOLUTION · tr F, see `resolved_ridge`.
RESOLUTION = 1e-12


@dataclass(frozen=True)
class Geometry:
    """Training and query gradients in the eigenbasis of F = GᵀG/n on their joint span; all float64."""

    eigenvalues: Tensor
    """(r,) eigenvalues of F, descending; exactly 0 for the last directions, which only queries have."""
    rank: int
    """Numerical rank of the training gradients; the first `rank` directions span range(F)."""
    rows: Tensor
    """(N, r) coordinates of all gradients scaled to unit length, training rows first; a zero gradient stays zero."""
    norms: Tensor
    """(N,) lengths of the gradients."""
    num_train: int
    """n: the first n rows are the training gradients, the rows of G."""
    query_rows: Tensor
    """(k,) int64, the rows that are queries: training rows, or rows behind them."""

    @property
    def queries(self) -> Tensor:
        """(k, r) coordinates of the unit query gradients."""
        return self.rows[self.query_rows]

    @property
    def outside_energy(self) -> Tensor:
        """(k,) share of each query's squared length that lies outside range(F), in [0, 1]."""
        return self.queries[:, self.rank :].square().sum(1)

    def query_weights(self) -> Tensor:
        """Return the sparse (k, N) float64 weights whose product with the unit rows gives the queries."""
        positions = torch.stack([torch.arange(len(self.query_rows), device=self.query_rows.device), self.query_rows])
        ones = torch.ones(len(self.query_rows), dtype=torch.float64, device=self.query_rows.device)
        return torch.sparse_coo_tensor(positions, ones, (len(self.query_rows), len(self.rows)), check_invariants=True)

    def subset_weights(self, subsets: Tensor) -> Tensor:
        """Return the (S, N) weights whose product with the unit rows gives the sums of the actual gradients.

        `subsets` is (S, h) int64: training samples of each subset.
        """
        weights = torch.zeros(len(subsets), len(self.rows), dtype=torch.float64, device=self.rows.device)
        return weights.scatter_(1, subsets.to(self.rows.device), 1.0) * self.norms


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


def build_geometry(unit_gram: Tensor, norms: Tensor, num_train: int, query_rows: Tensor) -> Geometry:
    """Return the coordinates of all gradients from the Gram matrix of their unit vectors.

    Training rows are factored first (pivoted Cholesky, G̃G̃ᵀ = LLᵀ), queries are expressed in the directions found
    and in new ones for what is left of them; the training directions are then rotated to the eigenvectors of
    F = Lᵀ diag(norms²) L / n. Working with unit rows keeps the relative accuracy of gradients whose norm is 1e-10 of
    the largest.

    Args:
        unit_gram: (N, N) float64 Gram matrix of the rows scaled to unit length; training rows first.
        norms: (N,) float64 lengths of the rows.
        num_train: n, the number of training rows.
        query_rows: (k,) int64 rows that are queries; training rows, or rows behind them.
    """
    order, factor = coordinates(unit_gram[:num_train, :num_train])
    rank = factor.shape[1]
    pivots = order[:rank]
    others = torch.arange(num_train, len(unit_gram), device=unit_gram.device)
    inside = torch.linalg.solve_triangular(factor[pivots], unit_gram[pivots][:, others], upper=False).T
    _, outside = coordinates(unit_gram[others][:, others] - inside @ inside.T)

    weighted = factor * norms[:num_train, None]
    eigenvalues, vectors = torch.linalg.eigh(weighted.T @ weighted / num_train)
    # rounding leaves eigenvalues of the positive semidefinite F down to about -1e-16 times the largest
    eigenvalues, vectors = eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
    # a fixed sign, or rounding (threads, offload mode) would decide which realisation a seed gives
    seen = weighted @ vectors
    largest = seen.gather(0, seen.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)

    extra = outside.shape[1]
    pad = torch.nn.functional.pad
    train = pad(factor @ vectors, (0, extra))
    rows = torch.cat([train, torch.cat([inside @ vectors, outside], dim=1)])
    return Geometry(pad(eigenvalues, (0, extra)), rank, rows, norms, num_train, query_rows.to(rows.device))


def coordinates(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, r) rows L with LLᵀ = gram, r its numerical rank, by pivoted Cholesky factorisation.

    Also, and first, an order (N,) of the rows in which L[order] is lower trapezoidal. Only the lower triangle of the
    (N, N) float64 `gram` is read.
    """
    # dpstrf takes its first pivot without looking at the tolerance
    if not (gram.diagonal() > RANK_TOLERANCE).any():
        return torch.arange(len(gram), device=gram.device), gram.new_zeros(len(gram), 0)
    # torch has no pivoted Cholesky on any device
    factored, order, rank, info = lapack.dpstrf(gram.cpu().numpy(), lower=1, tol=RANK_TOLERANCE)
    if info < 0:
        raise ValueError(f"pivoted Cholesky: argument {-info} is invalid")
    order = torch.from_numpy(order.astype("int64") - 1)
    factor = torch.zeros(len(gram), rank, dtype=torch.float64)
    factor[order] = torch.from_numpy(factored)[:, :rank].tril()
    return order.to(gram.device), factor.to(gram.device)
