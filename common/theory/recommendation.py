"""How large a sketch must be for a wanted error, from the closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.self_influence import predict_self_influence_at
from common.theory.spectrum import Spectrum


def smallest_dimensions(
    spectrum: Spectrum,
    queries: Tensor,
    ridges: list[float],
    target: float,
    largest: int,
    corrected: bool = False,
    sjlt_columns: ColumnSample | None = None,
) -> list[int | None]:
    """Return for every λ the smallest m with predicted ε_95 of self-influence <= target, to 0.3 %.

    Args:
        spectrum: F.
        queries: (k, r) coordinates of the queries.
        ridges: λ > 0.
        target: ε.
        largest: largest m allowed; None where it does not suffice.
        corrected: solve the sketched problem with the corrected ridge.
        sjlt_columns: see sjlt.py.
    """

    def error(m: Tensor, ridge: Tensor) -> Tensor:
        return predict_self_influence_at(spectrum, queries, m, ridge, corrected, sjlt_columns).eps_95

    return smallest_dimensions_of(error, ridges, target, largest)


def smallest_dimensions_of(
    error: Callable[[Tensor, Tensor], Tensor], ridges: list[float], target: float, largest: int
) -> list[int | None]:
    """Return for every λ the smallest m with a predicted error <= target, to 0.3 %; None where `largest` does not do.

    Args:
        error: (m, λ), (L,) each -> (L,) predicted errors, which fall with m; NaN where there is none.
        ridges: λ > 0.
        target: ε.
        largest: largest m allowed.
    """
    ridge = torch.tensor(ridges, dtype=torch.float64)

    def reaches(m: Tensor) -> Tensor:
        return error(m, ridge) <= target  # NaN, where no correction exists, is not reached

    high = torch.full_like(ridge, largest)
    possible = reaches(high)
    low = torch.zeros_like(high)
    while (high - low > (0.003 * low).clamp(min=1)).any():
        middle = torch.where(low > 0, (low * high).sqrt(), high / 64).clamp(min=1).round()
        reached = reaches(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return [int(m) if ok else None for m, ok in zip(high.tolist(), possible.tolist(), strict=True)]
