"""The larger ridge μ that a sketch acts like: the root of λ = μ (1 − d_μ/m), from the eigenvalues of F.

Reference: LeJeune, Patil, Javadi, Baraniuk, Tibshirani, "Asymptotics of the Sketched Pseudoinverse", arXiv 2211.03751.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_ITERATIONS = 200


def sizes_and_ridges(m: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float64 on the CPU, broadcast to one shape.

    Raises:
        ValueError: m <= 0, ridge < 0, or anything not finite.
    """
    m, ridge = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64).cpu() for x in (m, ridge)))
    if not (torch.isfinite(m) & (m > 0)).all():
        raise ValueError(f"projection dimension m must be finite and > 0, got {m.min().item():g}")
    if not (torch.isfinite(ridge) & (ridge >= 0)).all():
        raise ValueError(f"ridge must be finite and >= 0, got {ridge.min().item():g}")
    return m, ridge


def implicit_ridge(eigenvalues: Tensor, m: Tensor, ridge: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return the ridge μ >= λ that a sketch of size m acts like: the root of λ = μ (1 − d_μ/m).

    At λ = 0 the root is the one with d_μ = m when m < rank(F), and 0 when m >= rank(F).

    The residual is evaluated as m − #{s>=μ} + Σ_{s>=μ} μ/(s+μ) − Σ_{s<μ} s/(s+μ) − mλ/μ: integers cancel
    exactly and the sums are bounded by twice the derivative with respect to log μ, so that the root is good to a few
    units of rounding even where m − d_μ is tiny.

    Args:
        eigenvalues: (r,) float64 positive eigenvalues of F, any order.
        m: projection dimensions > 0, any shape that broadcasts with `ridge`.
        ridge: λ >= 0.
        counts: (r,) float64 integers, how often each eigenvalue occurs; None: once.

    Returns:
        μ, float64, broadcast shape of m and ridge.

    Raises:
        ValueError: m <= 0, ridge < 0, or anything not finite.

    """
    s = eigenvalues
    counts = torch.ones_like(s) if counts is None else counts
    rank = counts.sum()
    m, ridge = sizes_and_ridges(m, ridge)
    shape, m, ridge = m.shape, m.flatten(), ridge.flatten()
    mu = torch.zeros_like(m)
    open_ = (ridge > 0) | (m < rank)
    m, ridge = m[open_], ridge[open_]
    if len(m) and len(s):
        mu[open_] = torch.cat([_solve(s, counts, *part) for part in zip(m.split(32), ridge.split(32), strict=True)])
    else:
        mu[open_] = ridge
    return mu.reshape(shape)


def _residual(s: Tensor, counts: Tensor, m: Tensor, ridge: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return m − d_μ − mλ/μ and its derivative with respect to t = log μ, all (cells,)."""
    mu = t.exp()
    share = torch.minimum(s, mu[:, None]) / (s + mu[:, None])
    large = (s >= mu[:, None]) * counts
    total, above = share @ counts, (share * large).sum(1)
    pull = m * ridge / mu
    return (m - large.sum(1)) + (2 * above - total) - pull, total - share.square() @ counts + pull


def _solve(s: Tensor, counts: Tensor, m: Tensor, ridge: Tensor) -> Tensor:
    """Bracketed Newton in log μ; λ <= μ <= λ + tr F/m, and d_μ >= m at μ = s_min (r−m)/m."""
    high = (ridge + (s @ counts) / m).log()
    low = torch.maximum(ridge, s.min() * (counts.sum() - m) / m).log()
    t = (low + high) / 2
    for iteration in range(_MAX_ITERATIONS):
        residual, slope = _residual(s, counts, m, ridge, t)
        low, high = torch.where(residual < 0, t, low), torch.where(residual > 0, t, high)
        newton = t - residual / slope
        done = (newton - t).abs() <= 2e-15 * t.abs().clamp(min=1)
        # Bisection outside the bracket, and every fourth step to bound the work where Newton creeps.
        usable = (newton > low) & (newton < high) & (iteration % 4 != 3)
        t = torch.where(done, t, torch.where(usable, newton, (low + high) / 2))
        if done.all():
            break
    return t.exp()
