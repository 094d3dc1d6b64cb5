"""What a random sketch does to ridge influence scores, in closed form: no sketch is drawn here.

Setting: F = GᵀG/n with eigenvalues s_1..s_r, ridge λ, sketch P (m x d) with E[PᵀP] = I, and

    B̃_λ(g, q) = (Pg)ᵀ (PFPᵀ + λI)⁻¹ (Pq)     instead of     B_λ(g, q) = gᵀ (F + λI)⁻¹ q.

To leading order the sketch replaces λ by a larger ridge μ (`implicit_ridge`) and adds noise with
ν = m − tr F²(F+μI)⁻² degrees of freedom. To next order in 1/ν, for a Gaussian sketch in the eigenbasis of F,
with w_j = μ/(s_j+μ), d_p = Σ (1−w_j)^p and δ = (d_2−d_3)/ν²,

    E[PᵀA⁻¹P] = diag( (w_j/μ) [1 + w_j (δ − (1−w_j)/ν)] ) ,      A = PFPᵀ + λI ,
    Cov[B̃(a,q), B̃(b,p)] = μ²/ν [ψ(a,b) ψ(q,p) + ψ(a,p) ψ(b,q)] ,   ψ(a,b) = aᵀ(F+μI)⁻²b .

References: LeJeune, Patil, Javadi, Baraniuk, Tibshirani, "Asymptotics of the Sketched Pseudoinverse",
arXiv 2211.03751 (μ); Hu, Hu, Ma, Zhao, "A Unified Theory of Random Projection for Influence Functions",
arXiv 2602.10449 (the bound that these laws sharpen); Bai and Silverstein, "CLT for linear spectral statistics
of large-dimensional sample covariance matrices", Ann. Probab. 32 (2004) (the term δ: E tr A⁻¹ = m(1+δ)/μ).

All vectors are given by coordinates in the eigenbasis of F, float64; directions outside range(F) carry
eigenvalue 0. Functions compute on the CPU and raise ValueError on input that no sketch could have.

Where the closed form fails (gap of predicted to measured ε_95 of self-influence):
- ν < 10, that is m within about 10 of rank(F) and λ -> 0: −4 % at ν = 15, −5 % to −37 % at ν = 4, and useless at
  m = rank(F) (+156 %). The mean ratio stays right to 0.1 %. For ν >= 40 and a Gaussian sketch: within 1 % from
  m = 4 on; m = 1: 3 %.
- sjlt with few columns a bucket has a law of its own, common/sjlt_theory.py.
- gradients concentrated on single parameters: at λ = 100, +3 % to +8 % for rademacher and sjlt (for such a query a
  rademacher sketch keeps the length exactly); below 0.3 % when spread over 200 parameters or more, for rademacher.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.pooled_errors import pooled_error_summary
from common.theory.sjlt import sjlt_ridge_and_dof
from common.theory.spectrum import effective_dimension

_MAX_ITERATIONS = 200


def _as_float64(value) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).cpu()


def _eigenvalues(eigenvalues) -> Tensor:
    eigenvalues = _as_float64(eigenvalues)
    if eigenvalues.ndim != 1 or not torch.isfinite(eigenvalues).all() or (eigenvalues < 0).any():
        raise ValueError("eigenvalues must be a vector of finite numbers >= 0")
    return eigenvalues


def _sizes_and_ridges(m, ridge) -> tuple[Tensor, Tensor]:
    m, ridge = torch.broadcast_tensors(_as_float64(m), _as_float64(ridge))
    if not (torch.isfinite(m) & (m > 0)).all():
        raise ValueError(f"projection dimension m must be finite and > 0, got {m.min().item():g}")
    if not (torch.isfinite(ridge) & (ridge >= 0)).all():
        raise ValueError(f"ridge must be finite and >= 0, got {ridge.min().item():g}")
    return m, ridge


def implicit_ridge(eigenvalues, m, ridge) -> Tensor:
    """Return the ridge μ >= λ that a sketch of size m acts like: the root of λ = μ (1 − d_μ/m).

    At λ = 0 the root is the one with d_μ = m when m < rank(F), and 0 when m >= rank(F).

    The residual is evaluated as m − #{s>=μ} + Σ_{s>=μ} μ/(s+μ) − Σ_{s<μ} s/(s+μ) − mλ/μ: integers cancel
    exactly and the sums are bounded by twice the derivative with respect to log μ, so that the root is good to a few
    units of rounding even where m − d_μ is tiny.

    Args:
        eigenvalues: (r,) eigenvalues of F, >= 0, any order.
        m: projection dimensions > 0, any shape that broadcasts with `ridge`.
        ridge: λ >= 0.

    Returns:
        μ, float64, broadcast shape of m and ridge.

    Raises:
        ValueError: m <= 0, ridge < 0, or anything not finite.

    """
    s = _eigenvalues(eigenvalues)
    s = s[s > 0]
    m, ridge = _sizes_and_ridges(m, ridge)
    shape, m, ridge = m.shape, m.flatten(), ridge.flatten()
    mu = torch.zeros_like(m)
    open_ = (ridge > 0) | (m < len(s))
    m, ridge = m[open_], ridge[open_]
    if len(m) and len(s):
        mu[open_] = torch.cat([_solve(s, *part) for part in zip(m.split(32), ridge.split(32), strict=True)])
    else:
        mu[open_] = ridge
    return mu.reshape(shape)


def _residual(s: Tensor, m: Tensor, ridge: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return m − d_μ − mλ/μ and its derivative with respect to t = log μ, all (cells,)."""
    mu = t.exp()
    share = torch.minimum(s, mu[:, None]) / (s + mu[:, None])
    large = s >= mu[:, None]
    total, above = share.sum(1), (share * large).sum(1)
    pull = m * ridge / mu
    return (m - large.sum(1)) + (2 * above - total) - pull, total - share.square().sum(1) + pull


def _solve(s: Tensor, m: Tensor, ridge: Tensor) -> Tensor:
    """Bracketed Newton in log μ; λ <= μ <= λ + tr F/m, and d_μ >= m at μ = s_min (r−m)/m."""
    high = (ridge + s.sum() / m).log()
    low = torch.maximum(ridge, s.min() * (len(s) - m) / m).log()
    t = (low + high) / 2
    for iteration in range(_MAX_ITERATIONS):
        residual, slope = _residual(s, m, ridge, t)
        low, high = torch.where(residual < 0, t, low), torch.where(residual > 0, t, high)
        newton = t - residual / slope
        done = (newton - t).abs() <= 2e-15 * t.abs().clamp(min=1)
        # Bisection outside the bracket, and every fourth step to bound the work where Newton creeps.
        usable = (newton > low) & (newton < high) & (iteration % 4 != 3)
        t = torch.where(done, t, torch.where(usable, newton, (low + high) / 2))
        if done.all():
            break
    return t.exp()


def corrected_ridge(eigenvalues, m, ridge) -> Tensor:
    """Return λ(1 − d_λ/m), the ridge to solve the sketched problem with so that it acts like λ; NaN where m <= d_λ.

    NaN means "not defined": a sketch with m <= d_λ acts like a ridge above λ whatever it is solved with.

    Args:
        eigenvalues: (r,) eigenvalues of F, >= 0.
        m: projection dimensions > 0, any shape that broadcasts with `ridge`.
        ridge: λ >= 0, the ridge that is wanted.

    Raises:
        ValueError: as `implicit_ridge`.

    """
    s = _eigenvalues(eigenvalues)
    m, ridge = _sizes_and_ridges(m, ridge)
    share = effective_dimension(s, ridge) / m
    return torch.where(share < 1, ridge * (1 - share), torch.nan)


@dataclass(frozen=True)
class SketchLaw:
    """What the law of B̃ needs to know about F, for a batch of (m, λ) cells; float64 (cells,) each."""

    ridge: Tensor
    """λ that scores are compared with."""
    mu: Tensor
    """μ, the ridge that the sketch acts like; NaN where a corrected ridge is not defined."""
    dof: Tensor
    """ν = m − d_2, degrees of freedom of the noise."""
    shift: Tensor
    """δ = (d_2 − d_3)/ν², relative finite-m shift of tr A⁻¹."""

    def mean_weights(self, eigenvalues: Tensor) -> Tensor:
        """Return (r, cells) weights c with E[B̃(a, q)] = Σ_j c_j a_j q_j."""
        w = self.mu / (eigenvalues[:, None] + self.mu)
        return w / self.mu * (1 + w * (self.shift - (1 - w) / self.dof))


def sketch_law(eigenvalues, m, ridge, corrected: bool = False, sjlt_columns: ColumnSample | None = None) -> SketchLaw:
    """Return the law of a sketch of size m at ridge λ > 0, for m and ridge of one common shape (cells,).

    ν = m − d_2 is computed as mλ/μ + Σ sμ/(s+μ)², without cancellation. With `corrected` the sketched problem is
    solved with `corrected_ridge`, so that μ = λ. For `sjlt_columns` see common/sjlt_theory.py.
    """
    s = _eigenvalues(eigenvalues)
    m, ridge = _sizes_and_ridges(m, ridge)
    if not (ridge > 0).all():
        raise ValueError(f"ridge must be > 0 here, got {ridge.min().item():g}")
    solved = corrected_ridge(s, m, ridge) if corrected else ridge
    mu = torch.where(solved.isnan(), torch.nan, ridge) if corrected else implicit_ridge(s, m, ridge)
    w = mu / (s[:, None] + mu)
    dof = m * solved / mu + (w * (1 - w)).sum(0)
    if sjlt_columns is not None:
        mu, dof = sjlt_ridge_and_dof(s, m, solved, sjlt_columns, mu, dof)
        w = mu / (s[:, None] + mu)
    shift = (w * (1 - w) ** 2).sum(0) / dof**2
    return SketchLaw(ridge, mu, dof, shift)


@dataclass(frozen=True)
class SelfInfluencePrediction:
    """Predicted distribution of φ̃/φ_λ over sketches and queries; float64 (ms, ridges), dimensionless.

    NaN where a corrected ridge is not defined (m <= d_λ).
    """

    mean_ratio: Tensor
    """Mean of φ̃/φ_λ over queries."""
    eps_mean: Tensor
    """Mean of ε = |φ̃/φ_λ − 1|."""
    eps_50: Tensor
    """Median of ε, pooled over queries and sketches."""
    eps_95: Tensor
    """95 % quantile of ε."""
    eps_99: Tensor
    """99 % quantile of ε."""


def predict_self_influence(
    eigenvalues, queries, ms, ridges, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> SelfInfluencePrediction:
    """Return the predicted error of self-influence φ̃_λ(q) for every m and λ, pooled over the queries.

        E[φ̃]   = Σ_j c_j q_j² ,  c the weights of `SketchLaw.mean_weights`
        sd[φ̃]  = √(2/ν) μ ψ(q, q)
        skew[φ̃] = √(8/ν) [1 + νδ − 3 (1 − μ qᵀ(F+μI)⁻³q / ψ(q, q))]

    and the distribution with these three moments that a cubic of a normal variable has (Wilson-Hilferty). For
    λ → ∞ that is the chi-square with m degrees of freedom, divided by m, of a Gaussian sketch.

    Args:
        eigenvalues: (r,) eigenvalues of F, >= 0.
        queries: (k, r) coordinates of the queries, any length; zero rows have no ratio and are left out.
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        corrected: solve the sketched problem with `corrected_ridge` instead of λ.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.

    """
    ms, ridges = _as_float64(ms).flatten(), _as_float64(ridges).flatten()
    cells = predict_self_influence_at(
        eigenvalues, queries, ms.repeat_interleave(len(ridges)), ridges.repeat(len(ms)), corrected, sjlt_columns
    )
    return SelfInfluencePrediction(*(getattr(cells, f.name).reshape(len(ms), -1) for f in fields(cells)))


def predict_self_influence_at(
    eigenvalues, queries, m, ridge, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> SelfInfluencePrediction:
    """Return `predict_self_influence` at single cells: m and ridge of one shape (cells,), as is the answer."""
    s = _eigenvalues(eigenvalues)
    law = sketch_law(s, m, ridge, corrected, sjlt_columns)
    squares = _as_float64(queries).square()
    squares = squares[squares.any(1)]
    if len(squares) == 0:
        raise ValueError("every query is zero, so that no ratio of self-influence exists")
    w = law.mu / (s[:, None] + law.mu)
    exact = squares @ (1 / (s[:, None] + law.ridge))
    psi = squares @ (w * w)
    mean = squares @ law.mean_weights(s) / exact
    std = (2 / law.dof).sqrt() * psi / (law.mu * exact)
    skew = (8 / law.dof).sqrt() * (1 + law.dof * law.shift - 3 * (1 - squares @ w**3 / psi))
    return SelfInfluencePrediction(mean.mean(0), *pooled_error_summary(mean - 1, std, skew))


@dataclass(frozen=True)
class CrossErrorPrediction:
    """Predicted distribution of |B̃ − B_λ|/(√φ_λ(g) √φ_λ(q)); float64 (ms, ridges), dimensionless."""

    eps_mean: Tensor
    """Mean over sketches and pairs."""
    eps_50: Tensor
    """Median, pooled over pairs and sketches."""
    eps_95: Tensor
    """95 % quantile."""
    eps_99: Tensor
    """99 % quantile."""


def predict_cross_error(
    eigenvalues, left, right, ms, ridges, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> CrossErrorPrediction:
    """Return the predicted normalised error of B̃(g, q) for every m and λ, pooled over pairs of rows.

        E[B̃] = Σ_j c_j g_j q_j ,   Var[B̃] = μ²/ν [ψ(g, g) ψ(q, q) + ψ(g, q)²]

    Args:
        eigenvalues: (r,) eigenvalues of F, >= 0.
        left: (p, r) coordinates of g, one row a pair.
        right: (p, r) coordinates of q, one row a pair.
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        corrected: solve the sketched problem with `corrected_ridge` instead of λ.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.

    """
    s = _eigenvalues(eigenvalues)
    left, right, ms, ridges = (_as_float64(value) for value in (left, right, ms, ridges))
    ms, ridges = ms.flatten(), ridges.flatten()
    law = sketch_law(s, ms.repeat_interleave(len(ridges)), ridges.repeat(len(ms)), corrected, sjlt_columns)
    products, left, right = left * right, left.square(), right.square()
    exact = 1 / (s[:, None] + ridges)
    scale = ((left @ exact) * (right @ exact)).sqrt().repeat(1, len(ms))
    bias = products @ (law.mean_weights(s) - exact.repeat(1, len(ms)))
    w2 = (law.mu / (s[:, None] + law.mu)) ** 2
    std = (((left @ w2) * (right @ w2) + (products @ w2) ** 2) / law.dof).sqrt() / law.mu
    return CrossErrorPrediction(
        *(
            value.reshape(len(ms), len(ridges))
            for value in pooled_error_summary(bias / scale, std / scale, torch.zeros_like(std))
        )
    )
