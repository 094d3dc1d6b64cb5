"""How errors fall with m: slopes in log m with their interval over sketches, against the theorem's −1/2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # not scipy.stats, whose import takes a second

THEOREM = -0.5
# closer to d_λ the bias of a sketch, which falls faster, is still a part of the error
SMALLEST_MULTIPLE = 4
MIN_POINTS = 3


def slope_table(errors: Sequence[str], predicted: pd.DataFrame, trials: pd.DataFrame | None) -> pd.DataFrame:
    """Return one row an error and λ: the slope of log ε_95 in log m over the m >= 4 d_λ of the grid.

    The measured slope is the mean of those of the trials, each fitted by least squares, with its 95 % interval by
    Student's t over the trials. Empty where fewer than 3 m are left, or where an ε_95 is 0 or missing; the interval
    also with one trial.

    Args:
        errors: names of the errors: columns are `<error>_95` of `trials` and `predicted_<error>_95`.
        predicted: one row an (m, λ).
        trials: one row a (trial, m, λ); None where nothing was measured.
    """
    rows = []
    for error in errors:
        for ridge, cells in predicted.groupby("lambda", sort=True):
            used = cells[cells["m"] >= SMALLEST_MULTIPLE * cells["d_lambda"]].sort_values("m")
            ms = used["m"].to_numpy()
            row = {"error": error, "lambda": ridge, "d_lambda": cells["d_lambda"].iloc[0], "num_m": len(ms)}
            row |= dict(zip(("smallest_m", "largest_m"), (ms[0], ms[-1]) if len(ms) else (None, None), strict=True))
            if trials is not None:
                here = trials[(trials["lambda"] == ridge) & trials["m"].isin(ms)]
                measured = here.pivot(index="m", columns="trial", values=f"{error}_95").to_numpy()
                row |= _interval(_slopes(ms, measured))
            row["predicted_slope"] = _slopes(ms, used[[f"predicted_{error}_95"]].to_numpy()).mean()
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({"smallest_m": "Int64", "largest_m": "Int64"})


def _slopes(ms: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the slope of every column of (M, T) errors; NaN where it is not known."""
    if len(ms) < MIN_POINTS:
        return np.full(max(1, errors.shape[1]), np.nan)
    centred = np.log(ms) - np.log(ms).mean()
    values = np.where(errors > 0, errors, np.nan)
    return centred @ np.log(values) / (centred @ centred)


def _interval(slopes: np.ndarray) -> dict[str, float | bool | None]:
    mean, count = slopes.mean(), len(slopes)
    half = np.nan
    if count > 1:
        half = stdtrit(count - 1, 0.975) * slopes.std(ddof=1) / count**0.5
    low, high = mean - half, mean + half
    inside = bool(low <= THEOREM <= high) if np.isfinite(half) else None
    return {"slope": mean, "slope_low": low, "slope_high": high, "minus_half_inside": inside}
