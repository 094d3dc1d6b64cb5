"""The error of sketched influence between two different gradients, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.pooled_errors import pooled_error_summary
from common.theory.sketch_law import law_on_grid
from common.theory.spectrum import Spectrum


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
    spectrum: Spectrum, left, right, ms, ridges, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> CrossErrorPrediction:
    """Return the predicted normalised error of B̃(g, q) for every m and λ, pooled over pairs of rows.

        E[B̃] = Σ_j c_j g_j q_j ,   Var[B̃] = μ²/ν [ψ(g, g) ψ(q, q) + ψ(g, q)²]

    Args:
        spectrum: F.
        left: (p, r) coordinates of g, one row a pair.
        right: (p, r) coordinates of q, one row a pair.
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        corrected: solve the sketched problem with `corrected_ridge` instead of λ.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.

    """
    left, right, ms, ridges = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (left, right, ms, ridges))
    law = law_on_grid(spectrum, ms, ridges, corrected, sjlt_columns)
    products, left, right = left * right, left.square(), right.square()
    exact = spectrum.resolvent_weights(1, law.ridge)
    scale = ((left @ exact) * (right @ exact)).sqrt()
    bias = products @ (law.mean_weights(spectrum) - exact)
    second = spectrum.resolvent_weights(2, law.mu)
    std = (((left @ second) * (right @ second) + (products @ second) ** 2) / law.dof).sqrt() * law.mu
    summary = pooled_error_summary(bias / scale, std / scale, torch.zeros_like(std))
    return CrossErrorPrediction(*(value.reshape(ms.numel(), ridges.numel()) for value in summary))
