"""What every sweep does with one sketch: solve it for every λ, raw and ridge corrected, and score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from common.experiments.cells import Cells
from common.sketches.influence import SketchedProblem, whitened_or_nan

Scores = Callable[[Tensor, int], dict]


def score_sketch(problem: SketchedProblem, cells: Cells, rows: Sequence[dict], scores: Scores) -> list[dict]:
    """Return rows, one a λ, with what was found there.

    Args:
        problem: one sketch.
        cells: whether scores are also ridge corrected, and F, which says how.
        rows: the beginnings, with `m` and `lambda` at least.
        scores: (v, .) whitened vectors and the number of the row -> columns, which begin with `corrected_` where the
            sketch was solved with λ(1 − d_λ/m). NaN vectors where λ is below rounding.
    """
    found = []
    for i, start in enumerate(rows):
        row = start | scores(whitened_or_nan(problem, start["lambda"]), i)
        if cells.ridge_correction:
            (corrected,) = cells.corrected(start["m"], [start["lambda"]])
            row["corrected_lambda"] = corrected
            if not math.isnan(corrected):
                more = scores(whitened_or_nan(problem, corrected), i)
                row |= {f"corrected_{name}": value for name, value in more.items()}
        found.append(row)
    return found
