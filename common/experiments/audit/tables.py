"""Effective dimension, predicted errors and recommended sizes, from the store alone."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from common.experiments.audit.reading import Audited
from common.experiments.bounds.sweep import predict, recommend
from common.experiments.cells import Cells, known_alone
from common.stores.moments import fold
from common.theory.cross_influence import predict_cross_error
from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis

SMALLEST_M = 16
LARGEST_FACTOR = 64
# share of M that d_λ may have where no law says which error that is
FEW_OF_M = 0.1


def effective_dimensions(audited: Audited, ridges: list[float]) -> pd.DataFrame:
    """Return one row a λ: d_λ with its standard error, from the whole store and from it folded once and twice."""
    grid = torch.tensor(ridges, dtype=torch.float64)
    spectrum = audited.spectrum
    std_error = spectrum.effective_dimension_std_error(grid)
    half = fold(audited.moments.second) if len(audited.moments.second) >= 4 else None
    quarter = fold(half) if half is not None and len(half) >= 4 else None
    return pd.DataFrame(
        {
            "lambda": ridges,
            "d_lambda": spectrum.sums(grid).first.tolist(),
            "d_lambda_std_error": torch.where(audited.has_error_bars(grid), std_error, torch.nan).tolist(),
            "d_lambda_half": _folded(half, audited.moments.rounding * 2, grid),
            "d_lambda_quarter": _folded(quarter, audited.moments.rounding * 4, grid),
            "resolved": (grid >= spectrum.smallest_ridge).tolist(),
        }
    )


def make_cells(audited: Audited, dimensions: pd.DataFrame) -> Cells:
    """Return the (m, λ) of the tables: powers of two from 16 to 64 M, M itself, and every resolved λ."""
    size = audited.spectrum.size
    powers = {2**j for j in range(60) if SMALLEST_M <= 2**j <= LARGEST_FACTOR * size}
    known = dimensions[dimensions["resolved"]]
    ms, ridges = sorted(powers | {size}), known["lambda"].tolist()
    return Cells(audited.spectrum, ms, ridges, known["d_lambda"].tolist(), True, has_law=audited.law_is_known)


def errors(audited: Audited, cells: Cells, seed: int) -> pd.DataFrame:
    """Return one row an (m, λ): predicted errors of self-influence and of cross scores, raw and ridge corrected.

    They are empty where the law of the projection is not known.
    """
    table = predict(cells, audited.tabled_queries)
    left, right = audited.pairs(seed)
    for prefix, corrected in (("predicted_cross_", False), ("predicted_corrected_cross_", True)):
        law = predict_cross_error(cells.spectrum, left, right, cells.ms, cells.ridges, corrected)
        for name in ("eps_50", "eps_95", "eps_99"):
            table[prefix + name] = getattr(law, name).flatten().tolist()
    table.insert(1, "of_store", table["m"] == audited.spectrum.size)
    return known_alone(table, cells)


def sizes(audited: Audited, cells: Cells, target: float) -> pd.DataFrame:
    """Return one row a λ: the smallest m up to 64 M with predicted ε_95 of self-influence <= target.

    m is empty where the law of the projection is not known.
    """
    largest = LARGEST_FACTOR * audited.spectrum.size + 1
    return recommend(cells, audited.tabled_queries, target, largest)


def choose_ridge(table: pd.DataFrame, target: float, audited: Audited) -> tuple[float, str]:
    """Return the smallest λ at which corrected self-influence reaches the target at M, and why it was chosen.

    A λ at which scores have no error bars is taken only where there is no other.
    Without predictions it is the smallest λ with d_λ at most a tenth of M.
    """
    own = table[table["of_store"]]
    if own["predicted_corrected_eps_95"].isna().all():
        few = own[own["d_lambda"] <= FEW_OF_M * own["m"]]
        if len(few):
            return few["lambda"].min(), f"the smallest λ with d_λ at most {FEW_OF_M:g} M"
        return own["lambda"].max(), f"the largest λ, as none has d_λ of at most {FEW_OF_M:g} M"
    own = own.dropna(subset=["predicted_corrected_eps_95"])
    barred = own[audited.has_error_bars(torch.tensor(own["lambda"].tolist(), dtype=torch.float64)).numpy()]
    own = barred if len(barred) else own
    good = own[own["predicted_corrected_eps_95"] <= target]
    if len(good):
        return good["lambda"].min(), f"the smallest λ with a predicted error (ε_95) of at most {target:g}"
    best = own.sort_values("predicted_corrected_eps_95").iloc[0]
    error = best["predicted_corrected_eps_95"]
    return best["lambda"], f"the λ with the smallest predicted error (ε_95 = {error:.3g}; none reaches {target:g})"


def _folded(second: Tensor | None, rounding: float, grid: Tensor) -> list[float]:
    if second is None or not second.diagonal().sum() > 0:
        return [math.nan] * len(grid)
    return SketchedSpectrum(eigenbasis(second)[0], rounding).sums(grid).first.tolist()
