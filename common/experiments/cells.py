"""The (m, λ) cells that a sweep measures or predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from common.theory.column_sample import ColumnSample
from common.theory.sketch_law import corrected_ridge
from common.theory.spectrum import Spectrum

CORRECTIONS = {"": False, "corrected_": True}
"""What the columns of a solve begin with -> whether its λ is corrected."""
CELL = ["trial", "m", "lambda", "d_lambda", "m_over_d_lambda"]


@dataclass(frozen=True)
class Cells:
    """The (m, λ) cells of a sweep, and the F that decides what is to be expected there."""

    spectrum: Spectrum
    """F."""
    ms: list[int]
    """Projection dimensions, ascending."""
    ridges: list[float]
    """λ, ascending."""
    effective_dimensions: list[float]
    """d_λ of every λ."""
    ridge_correction: bool
    """Whether every cell is also solved with λ(1 - d_λ/m)."""
    sjlt_columns: ColumnSample | None = None
    """For a sketch with one entry a column, whose law depends on how leverage is spread over columns."""
    has_law: bool = True
    """Whether a closed form is known of the projection; without it nothing is predicted."""

    @property
    def corrections(self) -> dict[str, bool]:
        """Those of `CORRECTIONS` that every cell is solved with."""
        return CORRECTIONS if self.ridge_correction else {"": False}

    def corrected(self, m: int, ridges: Sequence[float] | None = None) -> list[float]:
        """Return λ(1 - d_λ/m) for every λ of the cells, or of those given; NaN where m <= d_λ."""
        ridge = torch.tensor(self.ridges if ridges is None else ridges, dtype=torch.float64)
        return corrected_ridge(self.spectrum, torch.tensor(m), ridge).tolist()

    def reference_solves(self) -> list[float]:
        """Return for every λ the ridge that the reference is solved with: λ, or the κ of a sketch that acts like λ."""
        return self.spectrum.solve_of_ridge(torch.tensor(self.ridges, dtype=torch.float64)).tolist()

    def smallest_ridge(self, more: Mapping[int, Sequence[float]] | None = None) -> float:
        """Return the smallest λ that any cell is solved with, those of `more` (m -> λ) included."""
        more = more or {}
        solved = [*self.ridges, *(ridge for ridges in more.values() for ridge in ridges)]
        if self.ridge_correction:
            grid = [(m, self.ridges) for m in self.ms]
            solved += [ridge for m, ridges in [*grid, *more.items()] for ridge in self.corrected(m, ridges)]
        return min(ridge for ridge in solved if not math.isnan(ridge))


def cell_rows(cells: Cells, m: int, trial: int) -> list[dict]:
    """Return the beginnings of the rows of one sketch, one a λ: the columns `CELL`."""
    pairs = zip(cells.ridges, cells.effective_dimensions, strict=True)
    return [
        {"trial": trial, "m": m, "lambda": ridge, "d_lambda": d, "m_over_d_lambda": m / d if d > 0 else math.inf}
        for ridge, d in pairs
    ]


def known_alone(table: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """Return a table whose predictions are empty where the projection has no closed form."""
    if cells.has_law:
        return table
    return table.assign(**dict.fromkeys(table.columns[table.columns.str.startswith("predicted_")], math.nan))


def predicted_index(cells: Cells) -> pd.DataFrame:
    """Return one row an (m, λ) with d_λ and m/d_λ, the λ of the first m first."""
    table = pd.MultiIndex.from_product([cells.ms, cells.ridges], names=["m", "lambda"]).to_frame(index=False)
    table["d_lambda"] = table["lambda"].map(dict(zip(cells.ridges, cells.effective_dimensions, strict=True)))
    return table.assign(m_over_d_lambda=table["m"] / table["d_lambda"])
