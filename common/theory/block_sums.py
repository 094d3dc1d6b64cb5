"""The error of self-influence summed over blocks that are sketched apart, in closed form.

    φ = Σ_l φ_l ,   φ̃ = Σ_l φ̃_l ,   mean, variance and third cumulant of φ̃ are sums over the independent blocks

The law of each φ̃_l is that of a Gaussian sketch (self_influence.py); the sum is given the distribution with its three
moments (pooled_errors.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.theory.binned_spectrum import BinnedSpectrum
from common.theory.pooled_errors import pooled_error_summary
from common.theory.sketch_law import sketch_law


@dataclass(frozen=True)
class Cumulants:
    """Of φ̃ for every query and (m, λ), float64 (k, cells) each; those of independent blocks add up."""

    mean: Tensor
    """E φ̃."""
    variance: Tensor
    """Var φ̃."""
    third: Tensor
    """E (φ̃ − E φ̃)³."""

    def __add__(self, other: Cumulants) -> Cumulants:
        """Return those of the sum."""
        return Cumulants(self.mean + other.mean, self.variance + other.variance, self.third + other.third)


@dataclass(frozen=True)
class ErrorPrediction:
    """Predicted distribution of φ̃/φ over sketches and queries; float64 (cells,)."""

    mean_ratio: Tensor
    """Mean of φ̃/φ."""
    eps_mean: Tensor
    """Mean of ε = |φ̃/φ − 1|."""
    eps_50: Tensor
    """Median of ε."""
    eps_95: Tensor
    """95 % quantile of ε."""
    eps_99: Tensor
    """99 % quantile of ε."""


def sketched(spectrum: BinnedSpectrum, energies: Tensor, m: Tensor, ridge: Tensor) -> Cumulants:
    """Return the cumulants of φ̃ of one block.

    Args:
        spectrum: of the block.
        energies: (k, r) squared lengths of the queries' parts in each bin.
        m: (cells,) projection dimensions.
        ridge: (cells,) λ > 0.
    """
    law = sketch_law(spectrum, m, ridge)
    psi, third = (energies @ spectrum.resolvent_weights(power, law.mu) for power in (2, 3))
    std = (2 / law.dof).sqrt() * law.mu * psi
    # a query without a part in the block has psi = 0, and no skewness
    share = torch.where(psi > 0, law.mu * third / psi, 1.0)
    skew = (8 / law.dof).sqrt() * (1 + law.dof * law.shift - 3 * (1 - share))
    return Cumulants(energies @ law.mean_weights(spectrum), std.square(), skew * std**3)


def whole(exact: Tensor) -> Cumulants:
    """Return the cumulants of a block that is not sketched, from its (k, cells) φ."""
    return Cumulants(exact, torch.zeros_like(exact), torch.zeros_like(exact))


def side_by_side(parts: Sequence[Cumulants]) -> Cumulants:
    """Return the cumulants of all cells of some groups of cells."""
    return Cumulants(*(torch.cat([getattr(part, one.name) for part in parts], 1) for one in fields(Cumulants)))


def predicted_errors(cumulants: Cumulants, exact: Tensor) -> ErrorPrediction:
    """Return the errors pooled over the queries whose (k, cells) exact φ is not zero."""
    used = (exact > 0).all(1)
    exact = exact[used]
    std = cumulants.variance[used].sqrt()
    skew = torch.where(std > 0, cumulants.third[used] / std**3, 0.0)
    mean = cumulants.mean[used] / exact
    return ErrorPrediction(mean.mean(0), *pooled_error_summary(mean - 1, std / exact, skew))
