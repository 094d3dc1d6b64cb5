"""An orthonormal basis in which F is diagonal, built on the smaller side: from N x N inner products, or from F itself.

All that influence scores need of the gradients is their inner products. For d >= N the (N, N) Gram matrix of the unit
gradients is factored once, and every gradient becomes at most N numbers instead of d. For d < N the eigenvectors of the
(d, d) matrix F are the basis, and no N x N matrix is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.linalg import lapack
from torch import Tensor

from common.gradients.gram import add_gram, mirror_lower_triangle
from common.gradients.kept_rows import Gradients
from common.sketches.geometry import Geometry, ScoredVectors

# A row of the unit Gram matrix whose remaining squared length falls below this is taken to lie in the span of the
# rows before it: inner products of unit rows carry rounding errors of a few 1e-16, times the number of rows.
RANK_TOLERANCE = 1e-13


class Basis(Protocol):
    """Orthonormal directions v_1, v_2, ... of gradient space in which F is diagonal."""

    @property
    def eigenvalues(self) -> Tensor:
        """(r,) float64 eigenvalues of F, descending; exactly 0 outside range(F)."""

    @property
    def norms(self) -> Tensor:
        """(N,) float64 lengths of the gradients, training rows first."""

    def geometry(self, scored: ScoredVectors, gradients: Callable[[], Gradients]) -> Geometry:
        """Return the coordinates of what is scored; `gradients` returns the rows, where they are needed for that."""

    def range_weights(self, vectors: Tensor, gradients: Callable[[], Gradients]) -> Tensor:
        """Return the (k, N) weights, 0 for queries, whose product with the unit rows is the part in range(F).

        Of (k, r) coordinates; the shortest of all such weights. `gradients` as in `geometry`.
        """

    def entries(self, columns: Tensor, chosen: Tensor) -> Tensor:
        """Return the (K, r) entries v_jc of the basis in K columns c (parameters).

        `columns` are the (N, K) float64 entries of the unit gradients there, `chosen` (K,) int64 their numbers.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return all there is to keep on disk."""


@dataclass(frozen=True)
class SampleBasis:
    """The basis found from inner products, for d >= N: every row is known by its coordinates."""

    eigenvalues: Tensor
    """(r,) float64, descending; exactly 0 for the last directions, which only queries have."""
    rank: int
    """Numerical rank of the training gradients."""
    rows: Tensor
    """(N, r) float64 coordinates of all gradients scaled to unit length, training rows first; zero rows stay zero."""
    norms: Tensor
    """(N,) float64 lengths of the gradients."""
    num_train: int
    """n."""

    def geometry(self, scored: ScoredVectors, gradients: Callable[[], Gradients] | None = None) -> Geometry:
        """Return the coordinates of what is scored; no gradient is needed."""
        unit_rows = scored.unit_rows.to(self.rows.device)
        vectors = torch.cat([scored.subset_weights(self.norms) @ self.rows, self.rows[unit_rows]])
        vectors = scored.with_kernel_parts(vectors, self.rank)
        return Geometry(self.eigenvalues, self.rank, self.norms, self.num_train, scored, vectors)

    def range_weights(self, vectors: Tensor, gradients: Callable[[], Gradients] | None = None) -> Tensor:
        """Return the (k, N) weights α with α @ rows equal to `vectors` on range(F): α = Q R⁻ᵀ v, rows = Q R."""
        q, r = torch.linalg.qr(self.rows[: self.num_train, : self.rank])
        inside = torch.linalg.solve_triangular(r.T, vectors[:, : self.rank].T, upper=False)
        return torch.nn.functional.pad((q @ inside).T, (0, len(self.rows) - self.num_train))

    def entries(self, columns: Tensor, chosen: Tensor) -> Tensor:
        """Return the (K, r) entries of the basis in K columns, which solve rows @ basisᵀ = columns.

        On range(F), where (rows·norms)ᵀ(rows·norms)/n is the diagonal matrix of eigenvalues, by one product; in the
        directions that only queries have, from what that leaves of them.
        """
        n, rank, rows = self.num_train, self.rank, self.rows
        squares = self.norms[:n, None].square() / n
        inverse = torch.where(self.eigenvalues > 0, 1 / self.eigenvalues, 0)[:rank]
        inside = ((rows[:n, :rank] * squares).T @ columns[:n]) * inverse[:, None]
        if rank == rows.shape[1]:
            return inside.T
        left = columns[n:] - rows[n:, :rank] @ inside
        outside = torch.linalg.pinv(rows[n:, rank:]) @ left
        return torch.cat([inside, outside]).T

    def tensors(self) -> dict[str, Tensor]:
        """Return all there is to keep on disk."""
        return {
            "eigenvalues": self.eigenvalues,
            "rows": self.rows,
            "norms": self.norms,
            "rank": torch.tensor(self.rank),
        }


@dataclass(frozen=True)
class ParameterBasis:
    """The eigenvectors of the (d, d) matrix F, for d < N."""

    eigenvalues: Tensor
    """(d,) float64, descending; exactly 0 where rounding of F leaves nothing to know."""
    rank: int
    """Numerical rank of F: gradients so short that they vanish in the rounding of the others do not count."""
    directions: Tensor
    """(d, d) float64, the eigenvectors as columns."""
    norms: Tensor
    """(N,) float64 lengths of the gradients."""
    num_train: int
    """n."""

    def geometry(self, scored: ScoredVectors, gradients: Callable[[], Gradients]) -> Geometry:
        """Return the coordinates of what is scored, in one pass over the gradients."""
        sums, unit_rows = scored.subset_weights(self.norms), scored.unit_rows.to(self.norms.device)
        vectors = self.norms.new_zeros(len(sums) + len(unit_rows), len(self.directions))
        for start, rows in gradients().unit_rows():
            stop = start + len(rows)
            vectors[: len(sums)] += sums[:, start:stop] @ rows
            here = torch.nonzero((unit_rows >= start) & (unit_rows < stop)).flatten()
            vectors[len(sums) + here] = rows[unit_rows[here] - start]
        vectors = scored.with_kernel_parts(vectors @ self.directions, self.rank)
        return Geometry(self.eigenvalues, self.rank, self.norms, self.num_train, scored, vectors)

    def range_weights(self, vectors: Tensor, gradients: Callable[[], Gradients]) -> Tensor:
        """Return the (k, N) weights α = v K⁻¹ Gᵀ, G the unit training rows on range(F) and K = GᵀG, in two passes."""
        inside = self.directions[:, : self.rank]
        gram = self.norms.new_zeros(self.rank, self.rank)
        for start, rows in gradients().unit_rows():
            known = rows[: max(0, self.num_train - start)] @ inside
            gram.addmm_(known.T, known)
        solved = torch.linalg.solve(gram, vectors[:, : self.rank].T)
        weights = self.norms.new_zeros(len(vectors), len(self.norms))
        for start, rows in gradients().unit_rows():
            known = rows[: max(0, self.num_train - start)] @ inside
            weights[:, start : start + len(known)] = (known @ solved).T
        return weights

    def entries(self, columns: Tensor, chosen: Tensor) -> Tensor:
        """Return the (K, r) entries of the basis in K columns."""
        return self.directions[chosen.to(self.directions.device)]

    def tensors(self) -> dict[str, Tensor]:
        """Return all there is to keep on disk."""
        named = {"eigenvalues": self.eigenvalues, "directions": self.directions, "norms": self.norms}
        return {**named, "rank": torch.tensor(self.rank)}


def build_basis(gradients: Gradients, num_train: int) -> Basis:
    """Return the basis of gradients whose first `num_train` rows are the training gradients."""
    if gradients.num_columns < gradients.num_rows:
        return basis_of_parameters(gradients, num_train)
    return basis_of_samples(gradients.unit_gram(), gradients.norms, num_train)


def basis_of_samples(unit_gram: Tensor, norms: Tensor, num_train: int) -> SampleBasis:
    """Return the basis from the Gram matrix of the unit gradients.

    Training rows are factored first (pivoted Cholesky, G̃G̃ᵀ = LLᵀ), queries are expressed in the directions found
    and in new ones for what is left of them; the training directions are then rotated to the eigenvectors of
    F = Lᵀ diag(norms²) L / n. Working with unit rows keeps the relative accuracy of gradients whose norm is 1e-10 of
    the largest.

    Args:
        unit_gram: (N, N) float64 Gram matrix of the rows scaled to unit length; training rows first.
        norms: (N,) float64 lengths of the rows.
        num_train: n, the number of training rows.
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
    vectors = _with_fixed_signs(vectors, weighted @ vectors)

    extra = outside.shape[1]
    pad = torch.nn.functional.pad
    train = pad(factor @ vectors, (0, extra))
    rows = torch.cat([train, torch.cat([inside @ vectors, outside], dim=1)])
    return SampleBasis(pad(eigenvalues, (0, extra)), rank, rows, norms, num_train)


def basis_of_parameters(gradients: Gradients, num_train: int) -> ParameterBasis:
    """Return the eigenvectors of F, summed over batches of rows in float64: memory of d x d numbers, not N x N.

    Eigenvalues below rounding, d ε s_1 with ε = 2e-16, are set to 0. Rounding of F changes a score by about
    1e-16 tr(F)/λ relative to itself, as it does in `basis_of_samples`: where both could serve, they agree to 1e-8
    for λ >= 1e-7 tr F and to 1e-4 down to 1e-12 tr F.
    """
    norms = gradients.norms
    d = gradients.num_columns
    fisher = torch.zeros(d, d, dtype=torch.float64, device=norms.device)
    for start, rows in gradients.unit_rows():
        training = rows[: max(0, num_train - start)]
        add_gram(fisher, (training * norms[start : start + len(training), None]).T)
    mirror_lower_triangle(fisher)
    eigenvalues, directions = torch.linalg.eigh(fisher.div_(num_train))
    eigenvalues, directions = eigenvalues.flip(0), directions.flip(1)
    known = eigenvalues > d * torch.finfo(torch.float64).eps * eigenvalues[0]
    return ParameterBasis(
        torch.where(known, eigenvalues, 0),
        int(known.sum()),
        _with_fixed_signs(directions, directions),
        norms,
        num_train,
    )


def _with_fixed_signs(vectors: Tensor, seen: Tensor) -> Tensor:
    """Return `vectors` with columns turned so that the largest entry of each column of `seen` is positive.

    Otherwise rounding (threads, offload mode) would decide which realisation a seed gives.
    """
    largest = seen.gather(0, seen.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


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


def coordinates_as_they_stand(gram: Tensor) -> Tensor | None:
    """Return lower triangular (N, N) rows L with LLᵀ = gram, so that no row has a part in what later rows bring.

    None where rows are dependent to rounding: without pivoting, the rounding of directions that are nearly known would
    grow without bound in the rows after them. Only the lower triangle of the (N, N) float64 `gram` is read.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    return factor if not failed and (factor.diagonal().square() > RANK_TOLERANCE).all() else None
