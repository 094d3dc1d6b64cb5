"""What the laws of sketched scores need to know about F: a few functions of a ridge μ, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.theory.implicit_ridge import implicit_ridge


@dataclass(frozen=True)
class SpectralSums:
    """Sums over the spectrum at ridges μ, with d_p = tr (F(F+μI)⁻¹)^p; float64, the shape of μ each.

    Differences are sums of positive terms of their own, so that nothing cancels where d_1, d_2 and d_3 agree.
    """

    first: Tensor
    """d_1 = d_μ, the effective dimension."""
    first_minus_second: Tensor
    """d_1 − d_2 = μ tr F(F+μI)⁻²."""
    second_minus_third: Tensor
    """d_2 − d_3 = μ tr F²(F+μI)⁻³."""


@dataclass(frozen=True)
class PairProducts:
    """All that the law of B̃(a, b) needs to know about pairs (a, b), one row a pair; (p, r) float64 each."""

    products: Tensor
    """a_j b_j."""
    left_squares: Tensor
    """a_j²."""
    right_squares: Tensor
    """b_j²."""

    @classmethod
    def of(cls, left, right) -> PairProducts:
        """Return the products of (p, r) coordinates a and b, of any type and device, on the CPU."""
        left, right = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (left, right))
        return cls(left * right, left.square(), right.square())


class Spectrum(Protocol):
    """F as the laws see it. Vectors are given by coordinates in a basis that belongs to the spectrum."""

    @property
    def eigenvalues(self) -> Tensor:
        """(r,) float64 eigenvalues, known or estimated, descending, >= 0: what figures draw."""

    @property
    def size(self) -> int | None:
        """M of the one sketch that F is seen through; None where F is known."""

    @property
    def smallest_ridge(self) -> float:
        """Ridges below it are not resolved; 0 where F is known."""

    def solve_of_ridge(self, mu: Tensor) -> Tensor:
        """Return the ridge κ to solve with where one acts like μ on F; μ itself where F is known."""

    def sums(self, mu: Tensor) -> SpectralSums:
        """Return the spectral sums at ridges μ > 0 of any shape."""

    def implicit_ridge(self, m: Tensor, ridge: Tensor) -> Tensor:
        """Return the root μ of λ = μ (1 − d_μ/m), see `implicit_ridge.implicit_ridge`."""

    def resolvent_weights(self, power: int, mu: Tensor) -> Tensor:
        """Return (r, cells) weights c with aᵀ(F+μI)⁻ᵖ b = Σ_j c_j a_j b_j at (cells,) ridges μ > 0, p = 1, 2 or 3."""

    def own_inverse_dof(self, mu: Tensor) -> Tensor:
        """Return 1/ν of the noise that aᵀ(F+μI)⁻¹b carries because F is estimated, at ridges μ; 0 where F is known."""

    def difference_variance(self, pairs: PairProducts, first: Tensor, second: Tensor) -> Tensor:
        """Return the (p, cells) variance of what the weights say of aᵀ[(F+μ₁I)⁻¹ − (F+μ₂I)⁻¹]b; 0 where F is known.

        `first` and `second` are (cells,) ridges.
        """


class KnownSpectrum:
    """What spectra have in common whose eigenvalues are those of F, and not estimated."""

    eigenvalues: Tensor
    """(r,) float64, >= 0."""
    size = None
    smallest_ridge = 0.0

    def solve_of_ridge(self, mu: Tensor) -> Tensor:
        """Return μ: F itself is solved."""
        return mu

    def resolvent_weights(self, power: int, mu: Tensor) -> Tensor:
        """Return (r, cells) values of (s+μ)⁻ᵖ."""
        return (self.eigenvalues[:, None] + mu) ** -power

    def own_inverse_dof(self, mu: Tensor) -> Tensor:
        """Return zeros: nothing is estimated."""
        return torch.zeros_like(torch.as_tensor(mu, dtype=torch.float64))

    def difference_variance(self, pairs: PairProducts, first: Tensor, second: Tensor) -> Tensor:
        """Return zeros: nothing is estimated."""
        return torch.zeros(len(pairs.products), len(first), dtype=torch.float64)


class ExactSpectrum(KnownSpectrum):
    """The eigenvalues of F themselves; coordinates are those in its eigenbasis.

    Directions outside range(F) carry eigenvalue 0.
    """

    def __init__(self, eigenvalues: Tensor):
        """Keep (r,) eigenvalues, >= 0, any order and device, as float64 on the CPU; ValueError for anything else."""
        self.eigenvalues = checked_eigenvalues(eigenvalues)
        self._positive = self.eigenvalues[self.eigenvalues > 0]

    def sums(self, mu: Tensor) -> SpectralSums:
        """Return Σ (1−w), Σ w(1−w) and Σ w(1−w)² with w = μ/(s+μ)."""
        mu = torch.as_tensor(mu, dtype=torch.float64).unsqueeze(-1)
        share = self._positive / (self._positive + mu)
        rest = share * (mu / (self._positive + mu))
        return SpectralSums(share.sum(-1), rest.sum(-1), (rest * share).sum(-1))

    def implicit_ridge(self, m: Tensor, ridge: Tensor) -> Tensor:
        """Return the root μ of λ = μ (1 − d_μ/m)."""
        return implicit_ridge(self._positive, m, ridge)


def checked_eigenvalues(eigenvalues: Tensor) -> Tensor:
    """Return (r,) eigenvalues, any device, as float64 on the CPU; ValueError unless all are finite and >= 0."""
    s = torch.as_tensor(eigenvalues, dtype=torch.float64).cpu()
    if s.ndim != 1 or not torch.isfinite(s).all() or (s < 0).any():
        raise ValueError("eigenvalues must be a vector of finite numbers >= 0")
    return s


def effective_dimension(spectrum: Spectrum, ridge: float | Tensor) -> Tensor:
    """Return d_λ = tr F(F+λI)⁻¹ for one ridge or a tensor of ridges, float64."""
    return spectrum.sums(torch.as_tensor(ridge, dtype=torch.float64)).first
