"""What a random sketch does to ridge influence scores, in closed form: no sketch is drawn here.

Setting: F = GᵀG/n with eigenvalues s_1..s_r, ridge λ, sketch P (m x d) with E[PᵀP] = I, and

    B̃_λ(g, q) = (Pg)ᵀ (PFPᵀ + λI)⁻¹ (Pq)     instead of     B_λ(g, q) = gᵀ (F + λI)⁻¹ q.

To leading order the sketch replaces λ by a larger ridge μ (implicit_ridge.py) and adds noise with
ν = m − tr F²(F+μI)⁻² degrees of freedom. To next order in 1/ν, for a Gaussian sketch in the eigenbasis of F,
with w_j = μ/(s_j+μ), d_p = Σ (1−w_j)^p and δ = (d_2−d_3)/ν²,

    E[PᵀA⁻¹P] = diag( (w_j/μ) [1 + w_j (δ − (1−w_j)/ν)] ) ,      A = PFPᵀ + λI ,
    Cov[B̃(a,q), B̃(b,p)] = μ²/ν [ψ(a,b) ψ(q,p) + ψ(a,p) ψ(b,q)] ,   ψ(a,b) = aᵀ(F+μI)⁻²b .

F is seen through a `Spectrum` alone (spectrum.py): d_μ, d_2, d_3 and the forms aᵀ(F+μI)⁻ᵖb.

References: LeJeune, Patil, Javadi, Baraniuk, Tibshirani, "Asymptotics of the Sketched Pseudoinverse",
arXiv 2211.03751 (μ); Hu, Hu, Ma, Zhao, "A Unified Theory of Random Projection for Influence Functions",
arXiv 2602.10449 (the bound that these laws sharpen); Bai and Silverstein, "CLT for linear spectral statistics
of large-dimensional sample covariance matrices", Ann. Probab. 32 (2004) (the term δ: E tr A⁻¹ = m(1+δ)/μ).

All vectors are given by coordinates that belong to the spectrum, float64. Functions compute on the CPU and raise
ValueError on input that no sketch could have.

Where the closed form fails (gap of predicted to measured ε_95 of self-influence):
- ν < 10, that is m within about 10 of rank(F) and λ -> 0: −4 % at ν = 15, −5 % to −37 % at ν = 4, and useless at
  m = rank(F) (+156 %). The mean ratio stays right to 0.1 %. For ν >= 40 and a Gaussian sketch: within 1 % from
  m = 4 on; m = 1: 3 %.
- sjlt with few columns a bucket has a law of its own, sjlt.py.
- gradients concentrated on single parameters: at λ = 100, +3 % to +8 % for rademacher and sjlt (for such a query a
  rademacher sketch keeps the length exactly); below 0.3 % when spread over 200 parameters or more, for rademacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.implicit_ridge import sizes_and_ridges
from common.theory.shared_sides import SharedSides
from common.theory.sjlt import sjlt_ridge_and_dof
from common.theory.spectrum import Spectrum


def corrected_ridge(spectrum: Spectrum, m: Tensor, ridge: Tensor) -> Tensor:
    """Return λ(1 − d_λ/m), the ridge to solve the sketched problem with so that it acts like λ; NaN where m <= d_λ.

    NaN means "not defined": a sketch with m <= d_λ acts like a ridge above λ whatever it is solved with.

    Args:
        spectrum: F.
        m: projection dimensions > 0, any shape that broadcasts with `ridge`.
        ridge: λ >= 0, the ridge that is wanted.

    Raises:
        ValueError: m <= 0, ridge < 0, or anything not finite.

    """
    m, ridge = sizes_and_ridges(m, ridge)
    share = spectrum.sums(ridge).first / m
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

    def mean_weights(self, spectrum: Spectrum) -> Tensor:
        """Return (r, cells) weights c with E[B̃(a, q)] = Σ_j c_j a_j q_j."""
        first, second, third = (spectrum.resolvent_weights(power, self.mu) for power in (1, 2, 3))
        damped = self.mu * second
        return first + damped * self.shift - (damped - self.mu**2 * third) / self.dof


def sketch_law(
    spectrum: Spectrum, m: Tensor, ridge: Tensor, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> SketchLaw:
    """Return the law of a sketch of size m at ridge λ > 0, for m and ridge of one common shape (cells,).

    ν = m − d_2 is computed as mλ/μ + (d_1 − d_2), without cancellation. With `corrected` the sketched problem is
    solved with `corrected_ridge`, so that μ = λ. For `sjlt_columns` see sjlt.py.
    """
    m, ridge = sizes_and_ridges(m, ridge)
    if not (ridge > 0).all():
        raise ValueError(f"ridge must be > 0 here, got {ridge.min().item():g}")
    solved = corrected_ridge(spectrum, m, ridge) if corrected else ridge
    mu = torch.where(solved.isnan(), torch.nan, ridge) if corrected else spectrum.implicit_ridge(m, ridge)
    sums = spectrum.sums(mu)
    dof = m * solved / mu + sums.first_minus_second
    if sjlt_columns is not None:
        if sjlt_columns.sides is None:
            mu, dof = sjlt_ridge_and_dof(spectrum, m, solved, sjlt_columns, mu, dof)
        else:
            mu, dof = _tensorsketch_ridge_and_dof(spectrum, m, solved, sjlt_columns, sjlt_columns.sides)
        sums = spectrum.sums(mu)
    return SketchLaw(ridge, mu, dof, sums.second_minus_third / dof**2)


def _tensorsketch_ridge_and_dof(
    spectrum: Spectrum, m: Tensor, ridge: Tensor, columns: ColumnSample, sides: SharedSides
) -> tuple[Tensor, Tensor]:
    """Return μ and ν of the SJLT in which as many pairs of columns meet, weighted as the bias and the noise weigh them.

    NaN where `ridge`, that the sketched problem is solved with, is NaN.
    """
    known = ~ridge.isnan()
    mu, dof = torch.full_like(ridge, torch.nan), torch.full_like(ridge, torch.nan)
    m, ridge = m[known], ridge[known]
    bias, noise = sides.sizes(m, spectrum.implicit_ridge(m, ridge))
    mu[known], dof[known] = (_sjlt_law(spectrum, size, ridge, columns)[i] for i, size in enumerate((bias, noise)))
    return mu, dof


def _sjlt_law(spectrum: Spectrum, m: Tensor, ridge: Tensor, columns: ColumnSample) -> tuple[Tensor, Tensor]:
    mu = spectrum.implicit_ridge(m, ridge)
    dof = m * ridge / mu + spectrum.sums(mu).first_minus_second
    return sjlt_ridge_and_dof(spectrum, m, ridge, columns, mu, dof)


def law_on_grid(
    spectrum: Spectrum, ms: Tensor, ridges: Tensor, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> SketchLaw:
    """Return the law in every cell of a grid, (ms * ridges,), the ridges of the first m first."""
    ms, ridges = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (ms, ridges))
    return sketch_law(spectrum, ms.repeat_interleave(len(ridges)), ridges.repeat(len(ms)), corrected, sjlt_columns)
