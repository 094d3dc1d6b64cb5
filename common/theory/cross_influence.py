"""The error of sketched influence between two different gradients, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.pooled_errors import pooled_error_summary
from common.theory.sketch_law import sketch_law
from common.theory.spectrum import PairProducts, Spectrum

# ε_95 must not hang on pairs whose bias is not known
MOST_DROWNED = 0.05


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

    Where F is known by a sketch alone, the bias is itself an estimate with noise of known variance v
    (`Spectrum.difference_variance`). It already stands for so much of the variance: only the rest is added. Where v is
    the larger one, the bias drowns in it and the prediction is NaN.

    Args:
        spectrum: F.
        left: (p, r) coordinates of g, one row a pair.
        right: (p, r) coordinates of q, one row a pair.
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        corrected: solve the sketched problem with `corrected_ridge` instead of λ.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.

    """
    ms, ridges = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (ms, ridges))
    pairs, cell_ridges = PairProducts.of(left, right), ridges.repeat(len(ms))
    cells = predict_cross_error_at(
        spectrum, pairs, ms.repeat_interleave(len(ridges)), cell_ridges, corrected, sjlt_columns
    )
    return CrossErrorPrediction(*(getattr(cells, f.name).reshape(len(ms), -1) for f in fields(cells)))


def predict_cross_error_at(
    spectrum: Spectrum,
    pairs: PairProducts,
    m: Tensor,
    ridge: Tensor,
    corrected: bool = False,
    sjlt_columns: ColumnSample | None = None,
) -> CrossErrorPrediction:
    """Return `predict_cross_error` at single cells: m and ridge of one shape (cells,), as is the answer."""
    law = sketch_law(spectrum, m, ridge, corrected, sjlt_columns)
    own = spectrum.difference_variance(pairs, law.mu, law.ridge)
    exact, second = spectrum.resolvent_weights(1, law.ridge), spectrum.resolvent_weights(2, law.mu)
    # both weights at once: rows are long, and reading them is what takes the time
    weights = torch.cat([exact, second], 1)
    (left, left_second), (right, right_second) = (
        (squares @ weights).chunk(2, 1) for squares in (pairs.left_squares, pairs.right_squares)
    )
    shifts = torch.cat([law.mean_weights(spectrum) - exact, second], 1)
    bias, shared = (pairs.products @ shifts).chunk(2, 1)
    scale = (left * right).sqrt()
    variance = (left_second * right_second + shared**2) / law.dof * law.mu**2
    bias, std = _without_own_noise(bias / scale, variance / scale**2, own / scale**2)
    return CrossErrorPrediction(*pooled_error_summary(bias, std))


def _without_own_noise(bias: Tensor, variance: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return bias and standard deviation that give the law of b + √variance z, where bias is b + √own z; (p, cells).

    That needs own <= variance. Cells where it fails for more than 5 % of the pairs become NaN.
    """
    drowned = (own > variance).double().mean(0) > MOST_DROWNED
    return bias, torch.where(drowned, torch.nan, (variance - own).clamp(min=0).sqrt())
