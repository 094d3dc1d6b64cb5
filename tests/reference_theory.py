"""Slow references for the closed forms: high-precision roots, and dense simulation with prescribed spectra."""

from __future__ import annotations

import mpmath
import torch
from torch import Tensor

SPECTRA = ("flat", "power", "step", "deficient")
KINDS = ("normal", "rademacher", "sjlt")


def spectrum(name: str, size: int) -> Tensor:
    """Return (size,) eigenvalues, descending: flat 1, j^-1.5, 1 then 1e-3, or j^-1 with the last half 0."""
    j = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "flat": torch.ones(size, dtype=torch.float64),
        "power": j**-1.5,
        "step": torch.where(j <= size // 8, 1.0, 1e-3).double(),
        "deficient": torch.where(j <= size // 2, 1 / j, 0.0),
    }[name]


def unit_queries(eigenvalues: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return (count, r) unit rows: half isotropic (partly outside the range of F), half drawn like gradients."""
    queries = torch.randn(count, len(eigenvalues), generator=generator, dtype=torch.float64)
    queries[: count // 2] *= eigenvalues.sqrt()
    return queries / queries.norm(dim=1, keepdim=True)


def random_basis(size: int, generator: torch.Generator) -> Tensor:
    """Return a (size, size) orthogonal matrix, spread over all coordinates."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def sketch_matrix(kind: str, m: int, d: int, generator: torch.Generator) -> Tensor:
    """Return P (m, d) with E[PᵀP] = I: N(0, 1/m), ±1/√m, or one ±1 a column."""
    if kind == "normal":
        return torch.randn(m, d, generator=generator, dtype=torch.float64) / m**0.5
    if kind == "rademacher":
        return (torch.randint(0, 2, (m, d), generator=generator).double() * 2 - 1) / m**0.5
    matrix = torch.zeros(m, d, dtype=torch.float64)
    signs = torch.randint(0, 2, (d,), generator=generator).double() * 2 - 1
    matrix[torch.randint(0, m, (d,), generator=generator), torch.arange(d)] = signs
    return matrix


def simulated_scores(eigenvalues, left, right, m, ridges, trials, generator, kind="normal", basis=None):
    """Yield (L, p, k) sketched scores B̃_λ(left, right) for every trial; `basis` (r, d) places the eigenvectors."""
    basis = torch.eye(len(eigenvalues), dtype=torch.float64) if basis is None else basis
    for _ in range(trials):
        sketched = sketch_matrix(kind, m, basis.shape[1], generator) @ basis.T
        factor = sketched * eigenvalues.sqrt()
        values, vectors = torch.linalg.eigh(factor @ factor.T)
        a, q = left @ sketched.T @ vectors, right @ sketched.T @ vectors
        yield torch.stack([(a / (values.clamp(min=0) + ridge)) @ q.T for ridge in ridges])


def exact_scores(eigenvalues, left, right, ridges) -> Tensor:
    """Return (L, p, k) scores B_λ(left, right)."""
    return torch.stack([(left / (eigenvalues + ridge)) @ right.T for ridge in ridges])


def implicit_ridge_mp(eigenvalues: list[float], m: int, ridge: float) -> mpmath.mpf:
    """Return the largest root of λ = μ (1 − d_μ/m), by bisection in log μ with 60 digits."""
    with mpmath.workdps(60):
        s = [mpmath.mpf(value) for value in eigenvalues if value > 0]
        m, ridge = mpmath.mpf(m), mpmath.mpf(ridge)
        if ridge == 0 and m >= len(s):
            return mpmath.mpf(0)
        low, high = mpmath.log(mpmath.mpf("1e-60")), mpmath.log(ridge + sum(s) / m) + 1
        while high - low > mpmath.mpf("1e-20"):
            mu = mpmath.exp((low + high) / 2)
            if m - sum(value / (value + mu) for value in s) > m * ridge / mu:
                high = (low + high) / 2
            else:
                low = (low + high) / 2
        return mpmath.exp(low)
