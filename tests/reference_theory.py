"""Slow references for the closed forms: high-precision roots, and dense simulation with prescribed spectra."""

from __future__ import annotations

import mpmath
import torch
from scipy.stats import poisson
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


def free_sketch_ridge(eigenvalues: Tensor, m: float, ridge: float, d: int) -> tuple[float, float]:
    """Return (μ, ν) of an SJLT whose bucket loads N ~ Poisson(d/m) are free of F, by bisection.

    With m E[N/(N+x)] = D = d_μ: λ = Λ(μ, D) = μ x D/(d − D), and μ²/ν = −μ Λ_D/(Λ_μ − Λ_D tr F(F+μI)⁻²). LeJeune et
    al., arXiv 2211.03751.
    """
    loads = torch.arange(1, int(d / m + 12 * (d / m) ** 0.5 + 13), dtype=torch.float64)
    weights = torch.from_numpy(poisson.pmf(loads.numpy(), d / m))
    low, high = -60.0, 60.0
    for _ in range(100):
        x = torch.tensor((low + high) / 2, dtype=torch.float64).exp()
        used = m * (weights * loads / (loads + x)).sum()
        mu = ridge * (d - used) / (x * used)
        if (eigenvalues / (eigenvalues + mu)).sum() > used:
            high = (low + high) / 2
        else:
            low = (low + high) / 2
    slope = -1 / (m * (weights * loads / (loads + x) ** 2).sum())
    by_dimension = mu * (slope * used / (d - used) + x * d / (d - used) ** 2)
    spread = (eigenvalues / (eigenvalues + mu) ** 2).sum()
    noise = -mu * by_dimension / (ridge / mu - by_dimension * spread)
    return mu.item(), (mu * mu / noise).item()


def bucket_weights(factor: Tensor, m: int, ridge: float) -> Tensor:
    """Return w_c of common/sjlt_theory.py for F = factor factorᵀ, every column's own, by damped iteration.

    `factor` is (d, r). E[1/(1 + t + L)] is integrated by the trapezoidal rule on a fine grid.
    """
    x = torch.linspace(-20, 4, 241, dtype=torch.float64).exp()
    step = 0.1
    weights = torch.full((len(factor),), 0.5, dtype=torch.float64)
    for _ in range(1000):
        solved = torch.linalg.inv(factor.T @ (weights[:, None] * factor) + ridge * torch.eye(factor.shape[1]).double())
        leverage = ((factor @ solved) * factor).sum(1)
        t = leverage / (1 - weights * leverage)
        decay = torch.exp(-x[:, None] * t)
        mean_inverse = (step * x * torch.exp(-x - (1 - decay).sum(1) / m)) @ decay
        new = mean_inverse / (1 - t * mean_inverse)
        if ((new / weights - 1).abs() < 1e-7).all():
            break
        weights = (weights * new).sqrt()
    return weights
