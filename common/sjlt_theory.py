"""The law of an SJLT with one entry a column when m is not far below d: buckets hold few columns, some none.

PPᵀ is then diagonal with the bucket loads, Poisson(d/m) each, and F is treated as free of it. With D = d_μ the root
of λ = Λ(μ) is the ridge that the sketch acts like, and the noise has ν degrees of freedom:

    Λ(μ) = μ x D/(d − D) ,   m E[N/(N+x)] = D ,   N ~ Poisson(d/m)
    μ²/ν = −μ Λ_D / (Λ_μ − Λ_D tr F(F+μI)⁻²)       (Λ_D, Λ_μ: partial derivatives)

For d/m → ∞ these are the Gaussian λ = μ(1 − d_μ/m) and ν = m − tr F²(F+μI)⁻². At most m(1 − e^(−d/m)) buckets are
filled, so that a sketch with m = d/2 has only 0.86 m dimensions.

Reference: LeJeune, Patil, Javadi, Baraniuk, Tibshirani, "Asymptotics of the Sketched Pseudoinverse",
arXiv 2211.03751: the equivalence for free sketches, by the S-transform of PᵀP, here that of the bucket loads.
"""

from __future__ import annotations

import torch
from scipy.stats import poisson
from torch import Tensor

from common.geometry import effective_dimension

ITERATIONS = 60
# Columns a bucket from which on the two laws differ by less than 1e-4.
GAUSSIAN_LOAD = 100


def sjlt_ridge_and_dof(
    eigenvalues: Tensor, m: Tensor, ridge: Tensor, d: int, gaussian_mu: Tensor, gaussian_dof: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (μ, ν), each (cells,) float64, of SJLT sketches solved with ridge λ.

    Args:
        eigenvalues: (r,) float64 eigenvalues of F, >= 0.
        m: (cells,) projection dimensions.
        ridge: (cells,) λ > 0 that the sketched problem is solved with; NaN stays NaN.
        d: number of parameters.
        gaussian_mu: (cells,) μ of a Gaussian sketch, kept where buckets hold so many columns that it serves.
        gaussian_dof: (cells,) ν of a Gaussian sketch, likewise.
    """
    mu, dof = gaussian_mu.clone(), gaussian_dof.clone()
    for cell in torch.nonzero((m * GAUSSIAN_LOAD > d) & ~ridge.isnan()).flatten().tolist():
        mu[cell], dof[cell] = _solve(eigenvalues, float(m[cell]), float(ridge[cell]), d)
    return mu, dof


def _solve(eigenvalues: Tensor, m: float, ridge: float, d: int) -> tuple[float, float]:
    loads, weights = _bucket_loads(d / m)
    # Λ grows with x, and μ with it: x is bracketed by bisection of its logarithm
    low, high = -60.0, 60.0 + torch.tensor(d / m).log().item()
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        x = torch.tensor(middle, dtype=torch.float64).exp()
        used = m * (weights * loads / (loads + x)).sum()
        mu = ridge * (d - used) / (x * used)
        if effective_dimension(eigenvalues, mu) > used:
            high = middle
        else:
            low = middle
    slope = -1 / (m * (weights * loads / (loads + x) ** 2).sum())
    by_dimension = mu * (slope * used / (d - used) + x * d / (d - used) ** 2)
    spread = (eigenvalues / (eigenvalues + mu) ** 2).sum()
    noise = -mu * by_dimension / (ridge / mu - by_dimension * spread)
    return mu.item(), (mu * mu / noise).item()


def _bucket_loads(mean: float) -> tuple[Tensor, Tensor]:
    """Return loads 1, 2, ... and their probabilities; what lies 12 standard deviations out is left out."""
    spread = 12 * mean**0.5 + 12
    loads = torch.arange(max(1, int(mean - spread)), int(mean + spread) + 1, dtype=torch.float64)
    return loads, torch.from_numpy(poisson.pmf(loads.numpy(), mean))
