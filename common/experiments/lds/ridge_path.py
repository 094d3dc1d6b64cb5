"""The best λ of every m, measured and predicted, the choice of (m, λ) along it, and how sure that choice is."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.selection import REACHED_SHARE, LdsGrid, finite_or_none
from common.experiments.lds.sweep import LdsTask

LEVELS = (0.025, 0.975)
STEPS = 10
MEASURED_CHOICE = (
    "lambda_star",
    "lambda_low",
    "lambda_high",
    "d_lambda",
    "val_lds",
    "val_lds_low",
    "val_lds_high",
    "test_lds",
)
PREDICTED_CHOICE = (
    "predicted_lambda_star",
    "predicted_val_lds",
    "predicted_test_lds",
    "measured_val_lds_at_predicted",
    "measured_test_lds_at_predicted",
)


@dataclass(frozen=True)
class RidgeOfDimension:
    """The λ with the best validation LDS at one m; None stands for what was not measured or does not exist."""

    m: int
    """Projection dimension."""
    lambda_star: float | None
    """λ*(m), on the grid, by measured validation LDS; the smallest of equals."""
    lambda_low: float | None
    """Lower end of its 95 % interval, by bootstrap over queries and subset models."""
    lambda_high: float | None
    """Upper end."""
    d_lambda: float | None
    """d_λ there."""
    val_lds: float | None
    """Validation LDS there, mean over trials."""
    val_lds_low: float | None
    """Lower end of its 95 % interval, by the same bootstrap."""
    val_lds_high: float | None
    """Upper end."""
    test_lds: float | None
    """Test LDS there; took no part in choosing."""
    predicted_lambda_star: float | None
    """λ*(m) of the closed form, on a grid ten times finer."""
    predicted_val_lds: float | None
    """Predicted validation LDS there."""
    predicted_test_lds: float | None
    """Predicted test LDS there."""
    measured_val_lds_at_predicted: float | None
    """Measured validation LDS at the predicted λ*(m)."""
    measured_test_lds_at_predicted: float | None
    """Measured test LDS there."""


@dataclass(frozen=True)
class CellLds:
    """One measured (m, λ)."""

    m: int
    """Projection dimension."""
    ridge: float
    """λ."""
    val_lds: float
    """Validation LDS, mean over trials."""
    test_lds: float | None
    """Test LDS, mean over trials."""


@dataclass(frozen=True)
class JointChoice:
    """m and λ chosen together, along λ*(m)."""

    m_95: int | None
    """Smallest m whose validation LDS at λ*(m) reaches 95 % of that at the largest m; None where that is not > 0."""
    m_95_low: int | None
    """Lower end of its 95 % interval, by bootstrap over queries and subset models."""
    m_95_high: int | None
    """Upper end."""
    lambda_m_95: float | None
    """λ*(m_95)."""
    c_95: float | None
    """m_95/d_λ at that λ."""
    val_lds: float | None
    """Validation LDS at (m_95, λ*(m_95))."""
    test_lds: float | None
    """Test LDS there."""
    exact_test_lds: float | None
    """Unsketched test LDS at that λ."""
    predicted_m_95: int | None
    """The same m by the closed form, along its own λ*(m)."""
    best: CellLds | None
    """The cell of the grid with the best validation LDS."""
    not_distinguishable: tuple[CellLds, ...]
    """Cells whose validation LDS is not below the best at 95 %: the interval of the difference reaches 0."""
    num_cells: int
    """Cells of the grid with a finite validation LDS."""


def paths(
    grid: LdsGrid, bootstrap: np.ndarray, predicted: pd.DataFrame, measured: pd.DataFrame
) -> tuple[list[RidgeOfDimension], JointChoice]:
    """Return the best λ of every m and the joint choice.

    Args:
        grid: measured LDS of the grid.
        bootstrap: (M, R, B) validation LDS of the resamples, mean over trials.
        predicted: one row an m, the predicted path: m, lambda, predicted_val_lds, predicted_test_lds.
        measured: one row an (m, λ), with val_lds and test_lds, the cells of the predicted path among them.
    """
    val, test = grid.val_lds.mean(axis=0), grid.test_lds.mean(axis=0)
    records, best = [], []
    for i, m in enumerate(grid.ms):
        known = np.isfinite(val[i])
        star = int(np.flatnonzero(known)[np.argmax(val[i, known])]) if known.any() else None
        best.append(star)
        own = _measured_choice(grid, i, star, val, test, bootstrap)
        records.append(RidgeOfDimension(int(m), **own, **_predicted_choice(predicted[predicted["m"] == m], measured)))
    return records, _joint(grid, best, val, test, bootstrap, predicted)


def predicted_paths(predicted: pd.DataFrame, ms: list[int]) -> list[RidgeOfDimension]:
    """Return the predicted path alone, where nothing was measured, at every m; `predicted` as in `paths`."""
    rows = ((m, predicted[predicted["m"] == m]) for m in ms)
    return [RidgeOfDimension(m, **dict.fromkeys(MEASURED_CHOICE), **_predicted_choice(row, None)) for m, row in rows]


def predicted_m_95(predicted: pd.DataFrame) -> int | None:
    """Return the smallest m whose predicted validation LDS reaches 95 % of that at the largest m, along the path."""
    path = predicted.dropna(subset="predicted_val_lds").sort_values("m")
    if path.empty or not path["predicted_val_lds"].iloc[-1] > 0:
        return None
    reached = path["predicted_val_lds"] >= REACHED_SHARE * path["predicted_val_lds"].iloc[-1]
    return int(path.loc[reached, "m"].iloc[0])


def fine_ridges(ridges: list[float]) -> list[float]:
    """Return the λ of a grid with nine more between neighbours, equally spaced in log λ."""
    between = [low * (high / low) ** (i / STEPS) for low, high in itertools.pairwise(ridges) for i in range(1, STEPS)]
    return sorted([*ridges, *between])


def refine(predicted: pd.DataFrame, task: LdsTask) -> pd.DataFrame:
    """Return `predicted` with further λ, ten times closer, between the neighbours of the best λ of every m of the grid.

    `predicted` is the closed form at the grid's own (m, λ) at least.
    """
    fine, ridges = fine_ridges(task.cells.ridges), task.cells.ridges
    tables = [predicted]
    for m in task.cells.ms:
        row = predicted[predicted["m"] == m].dropna(subset="predicted_val_lds")
        if row.empty or len(ridges) == 1:
            continue
        best = ridges.index(row.loc[row["predicted_val_lds"].idxmax(), "lambda"])
        low, high = ridges[max(0, best - 1)], ridges[min(best + 1, len(ridges) - 1)]
        tables.append(lds_sweep.predict([m], task, [r for r in fine if low < r < high and r not in ridges]))
    return pd.concat(tables).sort_values(["m", "lambda"], ignore_index=True)


def predicted_path(predicted: pd.DataFrame, ms: list[int]) -> pd.DataFrame:
    """Return the row of predicted.csv with the best predicted validation LDS of every m of the grid."""
    known = predicted[predicted["m"].isin(ms)].dropna(subset="predicted_val_lds")
    return known.loc[known.groupby("m")["predicted_val_lds"].idxmax()].reset_index(drop=True)


def with_path(task: LdsTask, path: pd.DataFrame) -> LdsTask:
    """Return the task that also measures the predicted best λ of every m; `path` is from `predicted_path`."""
    return replace(task, path={int(m): ridge for m, ridge in zip(path["m"], path["lambda"], strict=True)})


def joint_record(joint: JointChoice) -> dict:
    """Return the choice as selection.json has it: plain, with `lambda` for λ."""

    def plain(cell: CellLds) -> dict:
        return {"m": cell.m, "lambda": cell.ridge, "val_lds": cell.val_lds, "test_lds": cell.test_lds}

    best = None if joint.best is None else plain(joint.best)
    return asdict(joint) | {"best": best, "not_distinguishable": [plain(cell) for cell in joint.not_distinguishable]}


def joint_sentence(joint: JointChoice, path: list[RidgeOfDimension]) -> str:
    """Return one sentence that says which m and λ to use together and how sure that is, or why there are none."""
    if joint.m_95 is None:
        return "No recommendation: at the largest m no λ of the grid has a positive validation LDS."
    chosen = next(record for record in path if record.m == joint.m_95)
    count = len(joint.not_distinguishable)
    return (
        f"Use λ = {chosen.lambda_star:g} with m = {joint.m_95} ({joint.c_95:.2g} times d_λ = {chosen.d_lambda:.4g}): "
        f"test LDS {_show(joint.test_lds)}, against {_show(path[-1].test_lds)} at m = {path[-1].m} and "
        f"{_show(joint.exact_test_lds)} without a sketch. Over other queries and subset models (95 %): m from "
        f"{joint.m_95_low} to {joint.m_95_high}, λ at this m from {chosen.lambda_low:g} to {chosen.lambda_high:g}; "
        f"{count} of {joint.num_cells} cells are not distinguishable from the best."
    )


def _measured_choice(grid, i, star, val, test, bootstrap) -> dict[str, float | None]:
    if star is None:
        return dict.fromkeys(MEASURED_CHOICE)
    low, high = _interval(grid.ridges[_best_of(bootstrap[i])])
    lds_low, lds_high = np.quantile(bootstrap[i, star], LEVELS)
    of_grid = (grid.ridges[star], low, high, grid.effective_dimensions[star])
    values = (*of_grid, val[i, star], lds_low, lds_high, test[i, star])
    return dict(zip(MEASURED_CHOICE, map(finite_or_none, values), strict=True))


def _predicted_choice(path: pd.DataFrame, measured: pd.DataFrame | None) -> dict[str, float | None]:
    """Return what the closed form says, and what was measured there; `path` has one row, or none."""
    found: dict[str, float | None] = dict.fromkeys(PREDICTED_CHOICE)
    for row in path.to_dict("records"):
        values = [row[name] for name in ("lambda", "predicted_val_lds", "predicted_test_lds")]
        found |= dict(zip(PREDICTED_CHOICE, map(finite_or_none, values), strict=False))
        at = None if measured is None else measured[(measured["m"] == row["m"]) & (measured["lambda"] == row["lambda"])]
        if at is not None and len(at):
            lds = (finite_or_none(at[name].iloc[0]) for name in ("val_lds", "test_lds"))
            found |= dict(zip(PREDICTED_CHOICE[3:], lds, strict=True))
    return found


def _joint(grid, best, val, test, bootstrap, predicted) -> JointChoice:
    cells = np.argwhere(np.isfinite(val))
    lds_of_path = np.array([math.nan if star is None else val[i, star] for i, star in enumerate(best)])
    top = lds_of_path[-1]
    m_95 = int(np.argmax(lds_of_path >= REACHED_SHARE * top)) if top > 0 else None
    star = None if m_95 is None else best[m_95]
    low = high = None
    if m_95 is not None:
        along = np.nanmax(np.where(np.isfinite(bootstrap), bootstrap, -np.inf), axis=1)  # (M, B)
        useful = along[-1] > 0
        if useful.any():
            first = np.argmax(along[:, useful] >= REACHED_SHARE * along[-1, useful], axis=0)
            low, high = (int(m) for m in _interval(grid.ms[first]))
    winner = tuple(cells[np.argmax(val[tuple(cells.T)])]) if len(cells) else None
    equals: list[CellLds] = []
    if winner is not None:
        for i, j in cells:
            if (i, j) == winner or np.quantile(bootstrap[winner] - bootstrap[i, j], LEVELS[0]) <= 0:
                equals.append(_cell(grid, val, test, i, j))
    return JointChoice(
        m_95=None if m_95 is None else int(grid.ms[m_95]),
        m_95_low=low,
        m_95_high=high,
        lambda_m_95=None if star is None else float(grid.ridges[star]),
        c_95=None if star is None else finite_or_none(grid.ms[m_95] / grid.effective_dimensions[star]),
        val_lds=None if star is None else finite_or_none(val[m_95, star]),
        test_lds=None if star is None else finite_or_none(test[m_95, star]),
        exact_test_lds=None if star is None else finite_or_none(grid.exact_test_lds[star]),
        predicted_m_95=predicted_m_95(predicted),
        best=None if winner is None else _cell(grid, val, test, *winner),
        not_distinguishable=tuple(equals),
        num_cells=len(cells),
    )


def _cell(grid: LdsGrid, val: np.ndarray, test: np.ndarray, i: int, j: int) -> CellLds:
    return CellLds(int(grid.ms[i]), float(grid.ridges[j]), float(val[i, j]), finite_or_none(test[i, j]))


def _best_of(lds: np.ndarray) -> np.ndarray:
    """Return the index of the best λ in every resample of (R, B); the smallest of equals."""
    return np.argmax(np.where(np.isfinite(lds), lds, -np.inf), axis=0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of values of a grid, both ends on it."""
    low, high = np.quantile(values, LEVELS, method="inverted_cdf")
    return float(low), float(high)


def _show(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
