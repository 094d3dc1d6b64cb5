"""Spectra of many eigenvalues by a few thousand: those that agree to half a percent become their mean, counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.theory.implicit_ridge import implicit_ridge
from common.theory.spectrum import KnownSpectrum, SpectralSums, checked_eigenvalues

STEP = 0.01
"""Width of a bin in log s. What the laws ask for is smooth in log s, and a bin has the mean of its eigenvalues, so that
errors are of second order in this."""
NEGLIGIBLE = 1e-24
"""Share of the largest eigenvalue below which all fall into one bin."""


@dataclass(frozen=True)
class BinnedSpectrum(KnownSpectrum):
    """F by its bins, a `Spectrum`; a vector has one coordinate a bin, the length of its part in there."""

    eigenvalues: Tensor
    """(r,) float64 mean eigenvalues of the bins, descending, >= 0."""
    counts: Tensor
    """(r,) float64, how many eigenvalues are in each."""
    bins: Tensor
    """(d,) int64, the bin of every eigenvalue that the spectrum was made of."""

    def sums(self, mu: Tensor) -> SpectralSums:
        """Return Σ (1−w), Σ w(1−w) and Σ w(1−w)² with w = μ/(s+μ), each eigenvalue as often as it occurs."""
        mu = torch.as_tensor(mu, dtype=torch.float64).unsqueeze(-1)
        share = self.eigenvalues / (self.eigenvalues + mu)
        rest = share * (mu / (self.eigenvalues + mu))
        return SpectralSums(share @ self.counts, rest @ self.counts, (rest * share) @ self.counts)

    def implicit_ridge(self, m: Tensor, ridge: Tensor) -> Tensor:
        """Return the root μ of λ = μ (1 − d_μ/m)."""
        positive = self.eigenvalues > 0
        return implicit_ridge(self.eigenvalues[positive], m, ridge, self.counts[positive])

    def energies(self, squares: Tensor) -> Tensor:
        """Return the (k, r) float64 sums over bins of (k, d) squared coordinates, in the order of the eigenvalues."""
        found = torch.zeros(len(squares), len(self.counts), dtype=torch.float64, device=squares.device)
        return found.index_add_(1, self.bins.to(squares.device), squares.double()).cpu()


def binned(eigenvalues: Tensor) -> BinnedSpectrum:
    """Return the spectrum of (d,) eigenvalues >= 0, any order and device.

    Raises:
        ValueError: one is negative or not finite.
    """
    s = checked_eigenvalues(eigenvalues)
    largest = s.max()
    relative = (s / largest).clamp(min=NEGLIGIBLE) if largest > 0 else torch.ones_like(s)
    _, bins = torch.unique((-relative.log() / STEP).floor(), return_inverse=True)
    counts = torch.bincount(bins).double()
    return BinnedSpectrum(torch.bincount(bins, weights=s) / counts, counts, bins)
