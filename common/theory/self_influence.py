"""The error of sketched self-influence, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.pooled_errors import pooled_error_summary
from common.theory.sketch_law import sketch_law
from common.theory.spectrum import Spectrum


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
    spectrum: Spectrum, queries, ms, ridges, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> SelfInfluencePrediction:
    """Return the predicted error of self-influence φ̃_λ(q) for every m and λ, pooled over the queries.

        E[φ̃]   = Σ_j c_j q_j² ,  c the weights of `SketchLaw.mean_weights`
        sd[φ̃]  = √(2/ν) μ ψ(q, q)
        skew[φ̃] = √(8/ν) [1 + νδ − 3 (1 − μ qᵀ(F+μI)⁻³q / ψ(q, q))]

    and the distribution with these three moments that a cubic of a normal variable has (Wilson-Hilferty). For
    λ → ∞ that is the chi-square with m degrees of freedom, divided by m, of a Gaussian sketch.

    Args:
        spectrum: F.
        queries: (k, r) coordinates of the queries, any length; zero rows have no ratio and are left out.
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        corrected: solve the sketched problem with `corrected_ridge` instead of λ.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.

    """
    ms, ridges = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (ms, ridges))
    cells = predict_self_influence_at(
        spectrum, queries, ms.repeat_interleave(len(ridges)), ridges.repeat(len(ms)), corrected, sjlt_columns
    )
    return SelfInfluencePrediction(*(getattr(cells, f.name).reshape(len(ms), -1) for f in fields(cells)))


def predict_self_influence_at(
    spectrum: Spectrum, queries, m, ridge, corrected: bool = False, sjlt_columns: ColumnSample | None = None
) -> SelfInfluencePrediction:
    """Return `predict_self_influence` at single cells: m and ridge of one shape (cells,), as is the answer."""
    law = sketch_law(spectrum, m, ridge, corrected, sjlt_columns)
    squares = torch.as_tensor(queries, dtype=torch.float64).cpu().square()
    squares = squares[squares.any(1)]
    if len(squares) == 0:
        raise ValueError("every query is zero, so that no ratio of self-influence exists")
    exact = squares @ spectrum.resolvent_weights(1, law.ridge)
    psi, third = (squares @ spectrum.resolvent_weights(power, law.mu) for power in (2, 3))
    mean = squares @ law.mean_weights(spectrum) / exact
    std = (2 / law.dof).sqrt() * law.mu * psi / exact
    skew = (8 / law.dof).sqrt() * (1 + law.dof * law.shift - 3 * (1 - law.mu * third / psi))
    return SelfInfluencePrediction(mean.mean(0), *pooled_error_summary(mean - 1, std, skew))
