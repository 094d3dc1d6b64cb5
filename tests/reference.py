"""Slow, dense, obvious float64 twins of what the experiments compute, and gradients made to order.

Nothing here shares code with `common/`: every formula is written out with d x d matrices, or at 60 digits.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import torch
from torch import Tensor


class DenseGradients:
    """A (N, d) matrix of gradients in RAM, read by column blocks of a chosen width, or by rows."""

    def __init__(self, matrix: Tensor, width: int = 1_000_000):
        matrix = matrix.double()
        self.num_rows, self.num_columns = matrix.shape
        self.norms = matrix.norm(dim=1)
        self.unit = torch.where(self.norms[:, None] > 0, matrix / self.norms[:, None], 0.0)
        self.width = width

    def unit_blocks(self):
        for start in range(0, self.num_columns, self.width):
            yield start, self.unit[:, start : start + self.width].float()

    def unit_batches(self, samples=None):
        chosen = self.unit if samples is None else self.unit[samples]
        for start in range(0, len(chosen), 5):
            rows = chosen[start : start + 5].float()
            yield slice(start, start + len(rows)), rows

    def unit_rows(self):
        for start in range(0, self.num_rows, 7):
            yield start, self.unit[start : start + 7]

    def unit_gram(self) -> Tensor:
        return self.unit @ self.unit.T


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def orthonormal_rows(seed: int, rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(normal(seed, columns, rows)).Q.T


def gradients_with_spectrum(eigenvalues: Tensor, num_train: int, d: int, seed: int) -> Tensor:
    """Return a (num_train, d) matrix G whose GᵀG/n has the given (r,) eigenvalues and no others, r <= n, d."""
    left = orthonormal_rows(seed, len(eigenvalues), num_train).T
    right = orthonormal_rows(seed + 1, len(eigenvalues), d)
    return (num_train * eigenvalues).sqrt() * left @ right


def fisher(train: Tensor) -> Tensor:
    """Return F = GᵀG/n, (d, d)."""
    return train.T @ train / len(train)


def influence(train: Tensor, left: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Return the (v, k) exact scores aᵀ(F + λI)⁻¹q."""
    return left @ torch.linalg.solve(fisher(train) + ridge * torch.eye(train.shape[1], dtype=train.dtype), right.T)


def sketched_influence(P: Tensor, train: Tensor, left: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Return the (v, k) sketched scores (Pa)ᵀ(PFPᵀ + λI)⁻¹(Pq)."""
    system = P @ fisher(train) @ P.T + ridge * torch.eye(len(P), dtype=P.dtype)
    return left @ P.T @ torch.linalg.solve(system, P @ right.T)


def projection_matrix(projector, d: int, m: int, max_m: int, trial: int, width: int = 1_000_000) -> Tensor:
    """Return P (m x d), float64, found out by projecting the d unit vectors."""
    return projector.reduce(projector.project(DenseGradients(torch.eye(d), width), max_m, trial), m).double()


def influence_in_many_digits(train: Tensor, queries: Tensor, ridge: float, digits: int = 60) -> list[float]:
    """Return φ_λ(q) of every row of `queries` by the dual formula (‖q‖² − qᵀGᵀ(GGᵀ + nλI)⁻¹Gq)/λ, in many digits."""
    with mpmath.workdps(digits):
        G = mpmath.matrix(train.tolist())
        system = G * G.T
        for i in range(system.rows):
            system[i, i] += len(train) * mpmath.mpf(ridge)
        solve = solver_in_many_digits(system)
        scores = []
        for query in queries.tolist():
            q = mpmath.matrix(query)
            inner = G * q
            outside = (q.T * q)[0] - (inner.T * solve(inner))[0]
            scores.append(float(outside / mpmath.mpf(ridge)))
    return scores


def sketched_influence_in_many_digits(P: Tensor, train: Tensor, queries: Tensor, ridge: float) -> list[float]:
    """Return φ̃_λ(q) of every row of `queries`, in 60 digits: P is taken as it is, whatever its rounding."""
    with mpmath.workdps(60):
        transposed = mpmath.matrix(P.T.tolist())
        sketched = mpmath.matrix(train.tolist()) * transposed
        solve = solver_in_many_digits(mpmath.eye(len(P)) * mpmath.mpf(ridge) + sketched.T * sketched / len(train))
        scores = []
        for query in queries.tolist():
            q = (mpmath.matrix([query]) * transposed).T
            scores.append(float((q.T * solve(q))[0]))
    return scores


def solver_in_many_digits(system: mpmath.matrix) -> Callable[[mpmath.matrix], mpmath.matrix]:
    """Return b -> A⁻¹b. A is factored once; `mpmath.lu_solve` does so for every b."""
    factors, swaps = mpmath.mp.LU_decomp(system)
    return lambda b: mpmath.mp.U_solve(factors, mpmath.mp.L_solve(factors, b, swaps))


def effective_dimension(train: Tensor, ridge: float) -> float:
    """Return tr F(F + λI)⁻¹."""
    F = fisher(train)
    return torch.linalg.solve(F + ridge * torch.eye(len(F), dtype=F.dtype), F).trace().item()


def all_scores(problem, ridge: float) -> Tensor:
    """Return the (v, v) scores of all pairs of the vectors of a sketched problem."""
    rows = problem.whitened(ridge)
    return rows @ rows.T


def relative_gap(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of (v, v) scores, relative to √φ(a) √φ(b)."""
    scale = expected.diagonal().sqrt()
    return ((found - expected).abs() / scale / scale[:, None]).max().item()
