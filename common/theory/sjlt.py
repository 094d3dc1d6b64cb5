"""The law of an SJLT with one entry a column where buckets hold few columns, some none, some busy ones.

The sketch adds up columns in m buckets. Let h_c = [AᵀA(AᵀA+μI)⁻¹]_cc be the leverage of column c at ridge μ, with
A = G/√n, so that Σ h_c = d_μ. Leaving one bucket out (the columns in it take no part elsewhere) shows that a column
weighs like t_c = (μ/λ) h_c/(1−h_c), whatever its own weight, and that the sketch acts like a ridge λ/w_c on column c:

    w_c (1 − t_c R_c) = R_c ,   R_c = E[1/(1 + t_c + L)] ,   L = Σ t_c' over the columns that share c's bucket
                              = ∫ exp(−x(1+t_c) − (1/m) Σ_c' (1 − exp(−x t_c'))) dx        (L compound Poisson)

and so E[Pᵀ(PFPᵀ+λI)⁻¹P] = (F + λ diag(1/w))⁻¹. μ is the scalar that closes the system, Σ t_c R_c = d_μ; scores then
see the mean of λ/w_c, weighted by the energy of (F+μI)⁻¹q in column c. The noise has ν degrees of freedom, with
1/ν = d log μ / dε when leverage ε is added in proportion to that energy. Equal leverages h_c = d_μ/d give the free
sketch of LeJeune et al.; d/m → ∞ gives the Gaussian λ = μ(1 − d_μ/m), ν = m − tr F²(F+μI)⁻²; a diagonal F, where
buckets decouple, is met up to 1/m.

With a ridge of its own on every column, at a cost of d r² a step, this law met simulated mean ratios within their noise
(0.1 %, d = 800, r = 400, m = 300 and 450). What is approximate here: leverages come from a sample of columns and a
common ridge in place of λ/w_c, and all queries see one mean. Measured on logistic regression (d = 7,850, rank 4,500,
m up to 4,096), where leverages spread from 0.002 to 0.98: mean ratio within 2 %, ε_95 within 3 % for m >= 256; with
equal leverages ε_95 is up to 19 % too low there. It fails for λ → 0 with m near the rank: with column scales spread
over a factor 16, λ a hundredth of the smallest eigenvalue and m = 1.1 r, the mean ratio is 3 % too low and ε_95 26 %
too high.

Reference for free sketches: LeJeune, Patil, Javadi, Baraniuk, Tibshirani, "Asymptotics of the Sketched Pseudoinverse",
arXiv 2211.03751.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.spectrum import Spectrum

# Columns a bucket from which on the two laws differ by less than 1e-3 while leverages spread over a decade.
GAUSSIAN_LOAD = 400
GROUPS = 64
# The trapezoidal rule in log x has error exp(−π²/step) relative, 3e-9 here.
NODE_STEP = 0.5
MAX_ITERATIONS = 100
LARGEST_LEVERAGE = 1 - 1e-9


def sjlt_ridge_and_dof(
    spectrum: Spectrum, m: Tensor, ridge: Tensor, columns: ColumnSample, gaussian_mu: Tensor, gaussian_dof: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (μ, ν), each (cells,) float64, of SJLT sketches solved with ridge λ.

    Args:
        spectrum: F.
        m: (cells,) projection dimensions.
        ridge: (cells,) λ > 0 that the sketched problem is solved with; NaN stays NaN.
        columns: how leverage is spread over the d parameters.
        gaussian_mu: (cells,) μ of a Gaussian sketch, kept where buckets hold so many columns that it serves.
        gaussian_dof: (cells,) ν of a Gaussian sketch, likewise.
    """
    mu, dof = gaussian_mu.clone(), gaussian_dof.clone()
    cells = (m * GAUSSIAN_LOAD > columns.num_columns) & ~ridge.isnan()
    for part in torch.nonzero(cells).flatten().split(128) if cells.any() else ():
        law = _BucketLaw(spectrum, m[part], ridge[part], columns)
        mu[part], dof[part] = law.ridge_and_dof(gaussian_mu[part].fmax(ridge[part]).log())
    return mu, dof


class _BucketLaw:
    def __init__(self, spectrum: Spectrum, m: Tensor, ridge: Tensor, columns: ColumnSample):
        self.spectrum, self.m, self.ridge, self.d = spectrum, m, ridge, columns.num_columns
        self.grouped, self.energies = columns.eigenvalues[:, None], columns.energies
        self.query_energies = columns.query_energies
        sizes = [len(group) for group in torch.arange(len(self.energies)).tensor_split(min(GROUPS, len(self.energies)))]
        self.shares = torch.tensor(sizes, dtype=torch.float64)[:, None] / len(self.energies)

    def evaluate(self, log_mu: Tensor, added: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Return Σ t_c R_c − d_μ and the log of the ridge that scores see, with leverage `added`; (cells,) each."""
        mu = log_mu.exp()
        used = self.spectrum.sums(mu).first
        leverages = _shares(self.energies @ (self.grouped / (self.grouped + mu)))
        seen = _shares(self.query_energies @ (self.grouped + mu) ** -2)
        h = ((leverages * used + seen * added) / self.d).clamp(max=LARGEST_LEVERAGE)
        order = h.argsort(0)
        h = torch.stack([group.mean(0) for group in h.gather(0, order).tensor_split(len(self.shares))])
        seen = torch.stack([group.sum(0) for group in seen.gather(0, order).tensor_split(len(self.shares))])
        t = h / (1 - h) * (mu / self.ridge)
        r = _mean_inverse(t, self.shares, self.d / self.m)
        log_ridge = (seen * (1 - t * r) / r).sum(0).log() - seen.sum(0).log() + self.ridge.log()
        return self.d * (self.shares * t * r).sum(0) - used - added, log_ridge

    def ridge_and_dof(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ridge that scores see and ν; the derivatives behind ν are central differences."""
        log_mu = self._root(start)
        step = torch.full_like(log_mu, 1e-4)
        added = 1e-4 * self.spectrum.sums(log_mu.exp()).first
        by_mu = self._difference(lambda sign: self.evaluate(log_mu + sign * step), step)
        by_leverage = self._difference(lambda sign: self.evaluate(log_mu, sign * added), added)
        slope = by_leverage[1] - by_mu[1] * by_leverage[0] / by_mu[0]
        return self.evaluate(log_mu)[1].exp(), 1 / slope

    @staticmethod
    def _difference(function, step: Tensor) -> list[Tensor]:
        return [(high - low) / (2 * step) for high, low in zip(function(1), function(-1), strict=True)]

    def _root(self, start: Tensor) -> Tensor:
        """Return log μ: bracketed, then regula falsi that halves the value at a stale end (Illinois)."""
        low, high = torch.maximum(start - 0.1, self.ridge.log()), start + 0.5
        f_low, f_high = self.evaluate(low)[0], self.evaluate(high)[0]
        for _ in range(MAX_ITERATIONS):
            short = f_high <= 0
            if not short.any():
                break
            low, f_low = torch.where(short, high, low), torch.where(short, f_high, f_low)
            high = torch.where(short, high + 1, high)
            f_high = self.evaluate(high)[0]
        # the difference is never positive at μ = λ, but for what the sample of columns leaves open
        too_high = f_low > 0
        low, f_low = torch.where(too_high, self.ridge.log(), low), torch.where(too_high, -f_high, f_low)
        was_above = torch.zeros_like(low)
        for _ in range(MAX_ITERATIONS):
            middle = (low * f_high - high * f_low) / (f_high - f_low)
            f = self.evaluate(middle)[0]
            above = f > 0
            f_low = torch.where(above & (was_above > 0), f_low / 2, f_low)
            f_high = torch.where(~above & (was_above < 0), f_high / 2, f_high)
            low, f_low = torch.where(above, low, middle), torch.where(above, f_low, f)
            high, f_high = torch.where(above, middle, high), torch.where(above, f, f_high)
            was_above = torch.where(above, 1.0, -1.0)
            if (((high - low).abs() < 1e-10) | (f.abs() < 1e-9 * self.m)).all():
                break
        return middle


def _shares(values: Tensor) -> Tensor:
    """Return (K, cells) values of the sampled columns in units of their mean."""
    return values / values.mean(0)


def _mean_inverse(t: Tensor, shares: Tensor, load: Tensor) -> Tensor:
    """Return (groups, cells) R = E[1/(1 + t + L)]; `shares` of all columns are in a group, `load` in a bucket."""
    # below the first node lies a share e^-18 of the integral
    first = -t.max().clamp(min=1).log().item() - 18
    x = torch.arange(first, 4.5, NODE_STEP, dtype=torch.float64).exp()
    decay = torch.exp(-x[:, None, None] * t)
    others = ((1 - decay) * shares).sum(1) * load
    weights = NODE_STEP * x[:, None] * torch.exp(-x[:, None] - others)
    return torch.einsum("xc,xgc->gc", weights, decay)
