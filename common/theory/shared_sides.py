"""Which pairs of entries a TensorSketch keeps apart: what its law needs beside that of an SJLT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedSides:
    """Shares of pairs of entries that stand in one row or one column of a parameter, or are both of a vector.

    TensorSketch of length L never adds such two up, before its L numbers are hashed to m. A pair of others meets with
    probability 1/m, such a pair with 1/m − 1/L. Of a side, or of vectors, with more than L entries a pair counts as the
    share of 1/L by which it meets less often.
    """

    length: int
    """L."""
    ridges: Tensor
    """(K,) ridges μ > 0 at which shares are known, ascending, float64."""
    of_leverage: Tensor
    """(K,) Σ h_c h_c' over these pairs, c = c' among them, over (Σ h_c)²; h_c is the leverage of entry c."""
    of_residuals: Tensor
    """(K,) mean over queries q of the same with r_c² for h_c, r = μ(F+μI)⁻¹q."""

    def sizes(self, m: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return m/(1 − κm/L) for the bias, κ the share of leverage, and for the noise, κ that of residuals.

        What a sketch without such exceptions would need for equally many meetings; both of the shape of m and mu.
        """
        shares = (self._at(mu, values) for values in (self.of_leverage, self.of_residuals))
        # beyond L, a sketch of size m would have a longer one
        covered = (m / self.length).clamp(max=1)
        bias, noise = (m / (1 - share * covered) for share in shares)
        return bias, noise

    def _at(self, mu: Tensor, values: Tensor) -> Tensor:
        known = np.log(self.ridges.numpy())
        found = np.interp(mu.log().numpy(), known, values.numpy())
        return torch.from_numpy(np.asarray(found)).clamp(max=1 - 1e-6)
