"""F seen through one sketch alone: the second implementation of the Protocol `Spectrum`.

With t_1 .. t_M the eigenvalues of S = PFPᵀ (up to a scale, the one in which λ is measured) and the sums

    R_p(κ) = Σ (t+κ)⁻ᵖ ,   T_p(κ) = Σ t (t+κ)⁻ᵖ = R_(p−1) − κ R_p ,

a solve with ridge κ acts like the ridge μ(κ) = M/R_1 on F, and there

    d_1 = M − κ R_1 ,   d_1 − d_2 = R_1 T_2/R_2 ,   d_2 − d_3 = (R_1/R_2) Σ (t−t̄)² (t+κ)⁻³ ,  t̄ = T_2/R_2
    aᵀ(F+μI)⁻¹b = Σ y z/(t+κ) ,  aᵀ(F+μI)⁻²b = Σ y z (t+κ)⁻²/μ' ,  y, z = Pa, Pb in the eigenbasis of S ,

each further power by −1/p d/dμ. Nothing of this needs F. It exists for μ > μ(0+): below, the sketch cannot tell
how F goes on, since d_μ approaches M.

One sketch gives one draw of R_1. Its variance is that of a linear spectral statistic, 1/3 of the Schwarzian derivative
of μ(κ), which makes the standard error of d_μ

    sd[d_μ] = (R_1/R_2) √(2 Var w) ,   Var w that of w = (t+κ)⁻¹ under the weights w²/R_2 .

References: LeJeune, Patil, Javadi, Baraniuk, Tibshirani, "Asymptotics of the Sketched Pseudoinverse",
arXiv 2211.03751 (μ); Bai and Silverstein, "CLT for linear spectral statistics of large-dimensional sample covariance
matrices", Ann. Probab. 32 (2004) (the variance, for Gaussian sketches).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.theory.spectrum import PairProducts, SpectralSums

# S is known to about 1e-16 of its trace: smaller solves would see rounding
SMALLEST_SOLVE = 1e-12
# of these every column of P has an entry in few rows
SPARSE_LAWS = ("sjlt", "tensorsketch")
# columns of P for each of its rows, from which on an sjlt's rows are alike enough for the laws of a Gaussian sketch
FEWEST_A_BUCKET = 16
_MAX_ITERATIONS = 200
_CELLS_AT_ONCE = 64


def eigenbasis(second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of S = PFPᵀ over the M' rows of P that reach F, descending, and (M, M') eigenvectors.

    A row and column of zeros is a row of P to which no gradient contributes, such as an empty bucket of an SJLT. It is
    no part of the sketch, and μ(κ) = M/R_1 must not count it: its 1/κ in R_1 would let every ridge be resolved.
    """
    live = second.diagonal().nonzero().flatten()
    part = second if len(live) == len(second) else second[live][:, live]
    eigenvalues, vectors = torch.linalg.eigh(part)
    basis = second.new_zeros(len(second), len(live))
    basis[live] = vectors.flip(1)
    return eigenvalues.flip(0), basis


def few_in_a_bucket(kind: str, num_columns: int, size: int) -> str | None:
    """Say how far what a sparse P of `size` rows shows can be trusted; None where nothing speaks against it."""
    if kind not in SPARSE_LAWS or num_columns >= FEWEST_A_BUCKET * size:
        return None
    return (
        f"{num_columns} parameters in M = {size} buckets, {num_columns / size:.2g} in each: where d_λ is not far below "
        "M, d_λ is off by some percent, and standard errors are too small"
    )


class SketchedSpectrum:
    """Estimates of what the laws need, from the eigenvalues of S; vectors are Pa in the eigenbasis of S.

    Ridges below `smallest_ridge` are not resolved: every function gives NaN there.
    """

    def __init__(self, eigenvalues: Tensor, rounding: float = 0.0):
        """Keep all M eigenvalues of S, zeros included; ValueError for anything that S could not have.

        Args:
            eigenvalues: (M,) >= 0, any order; negative by rounding alone counts as 0.
            rounding: mean square of the rounding error of a stored number. It adds that much to every eigenvalue;
                solves with less than 100 times as much are not trusted.
        """
        t = torch.as_tensor(eigenvalues, dtype=torch.float64).cpu()
        largest = t.max().item() if t.ndim == 1 and len(t) else 0.0
        if t.ndim != 1 or not torch.isfinite(t).all() or not largest > 0 or (t < -1e-10 * largest).any():
            raise ValueError("eigenvalues must be a vector of finite numbers >= 0, not all 0")
        self.eigenvalues = t.clamp(min=0).sort(descending=True).values
        self._smallest_solve = max(SMALLEST_SOLVE * t.clamp(min=0).sum().item(), 100 * rounding)

    @property
    def size(self) -> int:
        """M, the projection dimension of the sketch."""
        return len(self.eigenvalues)

    @property
    def smallest_ridge(self) -> float:
        """μ at the smallest solve that is trusted: ridges below it are not resolved."""
        return self.ridge_of_solve(torch.tensor(self._smallest_solve, dtype=torch.float64)).item()

    def ridge_of_solve(self, solve: Tensor) -> Tensor:
        """Return μ(κ) = M/R_1, the ridge that (S + κI)⁻¹ acts like, any shape."""
        return self.size / self._sum(solve, lambda w: w)

    def solve_of_ridge(self, mu: Tensor) -> Tensor:
        """Return the κ with μ(κ) = μ, that is λ(1 − d_λ/M) for the wanted ridge λ; NaN where μ is not resolved."""
        mu = torch.as_tensor(mu, dtype=torch.float64)

        def residual(solve: Tensor) -> tuple[Tensor, Tensor]:
            r1, r2 = self._sum(solve, lambda w: w), self._sum(solve, lambda w: w**2)
            return (self.size / (r1 * mu.flatten())).log(), solve * r2 / r1

        return self._root(residual, mu.flatten()).reshape(mu.shape)

    def sums(self, mu: Tensor) -> SpectralSums:
        """Return estimates of d_1, d_1 − d_2 and d_2 − d_3."""
        solve = self.solve_of_ridge(mu)
        r1, r2, t1, t2 = self._first_sums(solve)
        mean = (t2 / r2).unsqueeze(-1)
        spread = self._sum(solve, lambda w: (self.eigenvalues - mean) ** 2 * w**3)
        return SpectralSums(t1, r1 * t2 / r2, r1 / r2 * spread)

    def effective_dimension_std_error(self, mu: Tensor) -> Tensor:
        """Return the standard deviation over sketches of the estimated d_μ, for a Gaussian sketch."""
        solve = self.solve_of_ridge(mu)
        r1, r2, *_ = self._first_sums(solve)
        r3 = self._sum(solve, lambda w: w**3)
        mean = (self._sum(solve, lambda w: self.eigenvalues * w**3) / r3).unsqueeze(-1)
        # w_j minus its weighted mean is w_j (R_3/R_2)(mean − t_j)
        variance = (r3 / r2) ** 2 * self._sum(solve, lambda w: w**4 * (self.eigenvalues - mean) ** 2) / r2
        return r1 / r2 * (2 * variance).sqrt()

    def implicit_ridge(self, m: Tensor, ridge: Tensor) -> Tensor:
        """Return the root μ of λ = μ (1 − d_μ/m); NaN where that is not resolved.

        In κ it is the root of (M/m) (κ + (m − M)/R_1) = λ, which increases wherever it is positive.
        """
        m, ridge = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (m, ridge)))
        shape, m, ridge = m.shape, m.flatten(), ridge.flatten()

        def residual(solve: Tensor) -> tuple[Tensor, Tensor]:
            r1, r2 = self._sum(solve, lambda w: w), self._sum(solve, lambda w: w**2)
            value = self.size / m * (solve + (m - self.size) / r1) - ridge
            return value, self.size / m * solve * (1 + (m - self.size) * r2 / r1**2)

        high = ridge + 2 * self.eigenvalues.sum() / m
        return self.ridge_of_solve(self._root(residual, high)).reshape(shape)

    def resolvent_weights(self, power: int, mu: Tensor) -> Tensor:
        """Return (M, cells) weights c with aᵀ(F+μI)⁻ᵖb ≈ Σ_j c_j y_j z_j, p = 1, 2 or 3."""
        solve = self.solve_of_ridge(mu)
        w = 1 / (self.eigenvalues[:, None] + solve)
        if power == 1:
            return w
        r1, r2, _, t2 = self._first_sums(solve)
        slope = self.size * r2 / r1**2
        if power == 2:
            return w**2 / slope
        if power == 3:
            mean = (t2 / r2).unsqueeze(-1)
            spread = self._sum(solve, lambda w: (self.eigenvalues - mean) ** 2 * w**3)
            # R_1 R_3 − R_2², without cancellation
            curvature = -2 * self.size * (r2**2 / r1) * spread / r1**3
            return w**3 / slope**2 + w**2 * curvature / (2 * slope**3)
        raise ValueError(f"power must be 1, 2 or 3, got {power}")

    def own_inverse_dof(self, mu: Tensor) -> Tensor:
        """Return 1/(M − d_2): estimates of aᵀ(F+μI)⁻¹b are those of a sketch of size M with ridge correction."""
        solve = self.solve_of_ridge(mu)
        r1, r2, t1, t2 = self._first_sums(solve)
        return 1 / (self.size - t1 + r1 * t2 / r2)

    def difference_variance(self, pairs: PairProducts, first: Tensor, second: Tensor) -> Tensor:
        """Return the (p, cells) variance over sketches of the estimated aᵀ[(F+μ₁I)⁻¹ − (F+μ₂I)⁻¹]b.

        Cov[B̃_κ(a,b), B̃_κ'(a,b)] = [Σ y²ww' Σ z²ww' + (Σ yzww')²] / Σ ww' ,   w = (t+κ)⁻¹, w' = (t+κ')⁻¹
        """
        w1, w2 = (1 / (self.eigenvalues[:, None] + self.solve_of_ridge(mu)) for mu in (first, second))

        def covariance(weights: Tensor) -> Tensor:
            lengths = (pairs.left_squares @ weights) * (pairs.right_squares @ weights)
            return (lengths + (pairs.products @ weights) ** 2) / weights.sum(0)

        return (covariance(w1 * w1) + covariance(w2 * w2) - 2 * covariance(w1 * w2)).clamp(min=0)

    def _first_sums(self, solve: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return R_1, R_2, T_1 and T_2."""
        t = self.eigenvalues
        return (
            self._sum(solve, lambda w: w),
            self._sum(solve, lambda w: w**2),
            self._sum(solve, lambda w: t * w),
            self._sum(solve, lambda w: t * w**2),
        )

    def _sum(self, solve: Tensor, term: Callable[[Tensor], Tensor]) -> Tensor:
        """Return Σ_j of a term of w = (t+κ)⁻¹, the shape of `solve`."""
        return term(1 / (self.eigenvalues + solve.unsqueeze(-1))).sum(-1)

    def _root(self, residual: Callable[[Tensor], tuple[Tensor, Tensor]], high: Tensor) -> Tensor:
        """Return where a (cells,) residual vanishes, which increases where it is positive; NaN where that is too small.

        Newton in log κ between the smallest solve and `high`, with bisection where it leaves the bracket. `residual`
        also gives its slope with respect to log κ.
        """
        low = torch.full_like(high, self._smallest_solve)
        resolved = (residual(low)[0] <= 0) & (high >= low)
        low, high = low.log(), torch.maximum(high, low).log()
        x = high
        for iteration in range(_MAX_ITERATIONS):
            value, slope = residual(x.exp())
            low, high = torch.where(value <= 0, x, low), torch.where(value > 0, x, high)
            newton = x - value / slope
            done = (newton - x).abs() <= 2e-15 * x.abs().clamp(min=1)
            # bisection also every fourth step, to bound the work where Newton creeps
            usable = (newton > low) & (newton < high) & (iteration % 4 != 3)
            x = torch.where(done, x, torch.where(usable, newton, (low + high) / 2))
            if (done | ~resolved | (high - low <= 4e-16 * high.abs().clamp(min=1))).all():
                break
        return torch.where(resolved, x.exp(), torch.nan)
