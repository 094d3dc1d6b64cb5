"""Ridge influence scores, exact and sketched: factor once per (sketch, λ), score all queries.

Exact:    B_λ(a, q) = aᵀ(F+λI)⁻¹q,            φ_λ(q) = B_λ(q, q)
Sketched: B̃_λ(a, q) = (Pa)ᵀ(PFPᵀ+λI)⁻¹(Pq),   φ̃_λ(q) = B̃_λ(q, q)      with F = GᵀG/n
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.gradients.gram import add_gram, gram_of_columns, gram_of_upper_trapezoid, mirror_lower_triangle
from common.sketches.basis import ordered_coordinates
from common.sketches.cholesky import factor_with_ridge, whiten
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
    """(b,) bound, descending, on what PFPᵀ adds from each coordinate on; None: nothing is known to be small."""

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
        vectors = self.vectors if strong == used else self._without_weak(strong, used, ridge)
        factor = factor_with_ridge(self.fisher[:strong, :strong], ridge)
        return torch.cat([whiten(factor, vectors[:, :strong]), vectors[:, strong:] / ridge**0.5], dim=1)

    def _block_sizes(self, ridge: float) -> tuple[int, int]:
        if self.leading_eigenvalues is None:
            return len(self.fisher), len(self.fisher)
        relative = self.leading_eigenvalues / ridge
        return int((relative > WEAK).sum()), int((relative > NEGLIGIBLE).sum())

    def _without_weak(self, strong: int, used: int, ridge: float) -> Tensor:
        """Return `vectors` after block elimination of the weak coordinates w from the strong ones s.

        x_s − M_sw x_w/λ and (I − M_ww/2λ) x_w with M = PFPᵀ: what is missing is of second order in M_ww/λ and M_sw/λ.
        """
        weak = slice(strong, used)
        own = self.fisher[weak, weak].clone()
        mirror_lower_triangle(own)
        scaled = self.vectors[:, weak] / ridge
        eliminated = self.vectors.clone()
        eliminated[:, weak].addmm_(scaled, own, alpha=-0.5)
        eliminated[:, :strong].addmm_(scaled, self.fisher[weak, :strong], alpha=-1)
        return eliminated


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
        return problem_from_gram(gram_of_columns(projected), norms, num_train, vectors)
    rows = projected.T.double()
    fisher = rows.new_zeros(len(projected), len(projected))
    add_gram(fisher, (rows[:num_train] * norms[:num_train, None]).T)
    return SketchedProblem(fisher / num_train, vectors @ rows)


def problem_from_gram(gram: Tensor, norms: Tensor, num_train: int, vectors: Tensor) -> SketchedProblem:
    """Return the sketched problem of projected unit gradients from their inner products, for m > N.

    The basis follows the training rows from the longest to the shortest, so that what F adds from some coordinate on is
    no more than the squared lengths of the rows from there on: short gradients weigh nothing against λ, and are not
    factored. See `problem_from_projection` for the arguments.

    Args:
        gram: (N, N) float64 inner products of projected unit rows; only the lower triangle is read. Overwritten.
        norms: (N,) float64.
        num_train: n.
        vectors: (v, N) float64.
    """
    # rows behind the training rows have no part in F
    weights = torch.cat([norms[:num_train], torch.zeros_like(norms[num_train:])])
    mirror_lower_triangle(gram)
    squares = gram.diagonal() * weights.square() / num_train
    order, starts, rows = ordered_coordinates(gram, weights.argsort(descending=True, stable=True))
    # rows[order] is lower trapezoidal
    fisher = gram_of_upper_trapezoid((rows[order] * weights[order, None]).T)
    tail = squares[order].flip(0).cumsum(0).flip(0)
    return SketchedProblem(fisher / num_train, vectors @ rows, tail[starts])
