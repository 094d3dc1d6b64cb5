"""Ridge influence scores, exact and sketched: factor once per (sketch, λ), score all queries.

Exact:    B_λ(a, q) = aᵀ(F+λI)⁻¹q,            φ_λ(q) = B_λ(q, q)
Sketched: B̃_λ(a, q) = (Pa)ᵀ(PFPᵀ+λI)⁻¹(Pq),   φ̃_λ(q) = B̃_λ(q, q)      with F = GᵀG/n
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from common.gradients.gram import add_gram, gram_of_columns, gram_of_upper_trapezoid, mirror_lower_triangle, panels
from common.sketches.basis import coordinates, coordinates_as_they_stand
from common.sketches.cholesky import factor_with_ridge, whiten, workspace_for
from common.sketches.geometry import resolved_ridge

# Small eigenvalues of F may change a score by this much, relatively: at most this multiple of λ, they are left out of
# PFPᵀ; at most √(half of it) λ, they are eliminated to first order, where what is left out is twice their square.
NEGLIGIBLE = 1e-8
WEAK = (NEGLIGIBLE / 2) ** 0.5


def exact_self_influence(eigenvalues: Tensor, queries: Tensor, ridge: float) -> Tensor:
    """Return the (k,) values φ_λ(q) = Σ q_j²/(s_j+λ) of (k, r) queries in the eigenbasis of F."""
    return queries.square() @ (1 / (eigenvalues + ridge))


def exact_influence(eigenvalues: Tensor, left: Tensor, queries: Tensor, ridge: float) -> Tensor:
    """Return the (v, k) values B_λ(a, q) of (v, r) and (k, r) vectors in the eigenbasis of F."""
    return (left / (eigenvalues + ridge)) @ queries.T


@dataclass(frozen=True)
class SketchedProblem:
    """PFPᵀ and sketched vectors, both in one orthonormal basis of (the used part of) sketch space."""

    fisher: Tensor
    """(b, b) float64 PFPᵀ; only the lower triangle is read."""
    vectors: Tensor
    """(v, q) float64 sketched vectors, q >= b; F has no weight that matters beyond the first b coordinates."""
    leading_eigenvalues: Tensor | None = None
    """(b,) bound, descending, on the largest eigenvalue of what PFPᵀ adds from each coordinate on; None: not known."""

    def whitened(self, ridge: float) -> Tensor:
        """Return the (v, q) rows w with w·w' = B̃_λ(a, a'): one Cholesky factorisation of PFPᵀ + λI.

        Where coordinates are known to be weak against λ, only the block of the others is factored.

        Raises:
            torch.linalg.LinAlgError: λ is below rounding, see `geometry.resolved_ridge`: scores would be noise, whether
                or not PFPᵀ + λI has a Cholesky factor in float64.
        """
        trace = self.fisher.diagonal().sum().item()
        if not ridge >= resolved_ridge(trace):
            raise torch.linalg.LinAlgError(f"λ = {ridge:g} is below the rounding of PFPᵀ, whose trace is {trace:g}")
        strong, used = self._block_sizes(ridge)
        first, others = self._without_weak(strong, used, ridge)
        factor = factor_with_ridge(self.fisher[:strong, :strong], ridge, self._workspace)
        return torch.cat([whiten(factor, first), *(part / ridge**0.5 for part in others)], dim=1)

    @cached_property
    def _workspace(self) -> Tensor:
        return workspace_for(self.fisher)

    def _block_sizes(self, ridge: float) -> tuple[int, int]:
        if self.leading_eigenvalues is None:
            return len(self.fisher), len(self.fisher)
        relative = self.leading_eigenvalues / ridge
        return int((relative > WEAK).sum()), int((relative > NEGLIGIBLE).sum())

    def _without_weak(self, strong: int, used: int, ridge: float) -> tuple[Tensor, list[Tensor]]:
        """Return the strong coordinates s, and the others, after block elimination of the weak ones w.

        x_s − M_sw x_w/λ and (I − M_ww/2λ) x_w with M = PFPᵀ: what is missing is of second order in M_ww/λ and M_sw/λ.
        """
        weak = slice(strong, used)
        if strong == used:
            return self.vectors[:, :strong], [self.vectors[:, strong:]]
        own = self.fisher[weak, weak].clone()
        mirror_lower_triangle(own)
        scaled = self.vectors[:, weak] / ridge
        first = torch.addmm(self.vectors[:, :strong], scaled, self.fisher[weak, :strong], alpha=-1)
        return first, [torch.addmm(self.vectors[:, weak], scaled, own, alpha=-0.5), self.vectors[:, used:]]


def whitened_or_nan(problem: SketchedProblem, ridge: float) -> Tensor:
    """Return `problem.whitened(ridge)`, or (v, 1) NaN where λ is below the rounding of PFPᵀ: no score exists."""
    try:
        return problem.whitened(ridge)
    except torch.linalg.LinAlgError:
        return problem.vectors.new_full((len(problem.vectors), 1), torch.nan)


def sketched_self_influence(problem: SketchedProblem, ridge: float) -> Tensor:
    """Return the (v,) values φ̃_λ of all vectors of `problem`; NaN where λ is below the rounding of PFPᵀ."""
    return whitened_or_nan(problem, ridge).square().sum(1)


def problem_from_projection(projected: Tensor, norms: Tensor, num_train: int, vectors: Tensor) -> SketchedProblem:
    """Return the sketched problem of explicitly projected unit gradients.

    For m <= N the problem is the m x m one. For m > N the N sketched rows are first expressed in an orthonormal
    basis of their own span, which leaves every score unchanged and the problem N x N.

    Args:
        projected: (m, N) PG̃ᵀ, training rows first.
        norms: (N,) float64 lengths of the gradients.
        num_train: n.
        vectors: (v, N) float64 weights, sparse or dense: the vectors to score are `vectors` times the unit rows.
    """
    if len(projected) > projected.shape[1]:
        order = longest_first(norms, num_train)
        gram = gram_of_columns(projected[:, order])
        return problem_from_gram(gram, norms[order], num_train, vectors.index_select(1, order))
    rows = norms.new_empty(projected.shape).copy_(projected).T
    known = vectors @ rows
    fisher = rows.new_zeros(len(projected), len(projected))
    add_gram(fisher, rows[:num_train].mul_(norms[:num_train, None]).T)
    return SketchedProblem(fisher.div_(num_train), known)


def longest_first(norms: Tensor, num_train: int) -> Tensor:
    """Return the (N,) int64 order in which `problem_from_gram` wants rows: training rows by length, then the others."""
    order = norms[:num_train].argsort(descending=True, stable=True)
    return torch.cat([order, torch.arange(num_train, len(norms), device=norms.device)])


def problem_from_gram(gram: Tensor, norms: Tensor, num_train: int, vectors: Tensor) -> SketchedProblem:
    """Return the sketched problem of projected unit gradients from their inner products, for m > N.

    The basis follows the training rows from the longest to the shortest, so that what F adds from some coordinate on
    is made of the rows from there on: short gradients weigh nothing against λ, and are not factored. Where the rows are
    dependent, it is any basis of their span. See `problem_from_projection` for the other arguments.

    Args:
        gram: (N, N) float64 inner products of projected unit rows, `longest_first`; only the lower triangle is read,
            and all of it may be overwritten.
        norms: (N,) float64.
        num_train: n.
        vectors: (v, N) float64.
    """
    # rows behind the training rows have no part in F
    weights = torch.cat([norms[:num_train], torch.zeros_like(norms[num_train:])]) / num_train**0.5
    rows = coordinates_as_they_stand(gram)
    if rows is not None:
        known, tails = vectors @ rows, _tail_lengths(gram, weights)
        return SketchedProblem(gram_of_upper_trapezoid(rows.mul_(weights[:, None]).T, out=gram), known, tails)
    _, rows = coordinates(gram)
    fisher = gram_of_columns(rows * weights[:, None])
    return SketchedProblem(fisher, vectors @ rows)


def _tail_lengths(gram: Tensor, weights: Tensor) -> Tensor:
    """Return for every row the Frobenius norm of W G̃ W, W = diag(weights), from that row and column on.

    It bounds the largest eigenvalue of Σ w_j² x_j x_jᵀ over the rows x_j from there on. Reads the lower triangle.
    """
    shares = weights.square()
    below = torch.zeros_like(shares)
    for part, before in panels(len(gram)):
        below[before] += shares[part] @ gram[part, before].square().tril_(part.start - 1)
    return (shares.square() * gram.diagonal().square() + 2 * shares * below).flip(0).cumsum(0).flip(0).sqrt()
