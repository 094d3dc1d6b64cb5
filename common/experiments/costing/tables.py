"""The table of projection_cost.py: errors and usefulness of finished runs beside the cost of their projections."""

from __future__ import annotations

import math

import pandas as pd

from common.experiments.costing.runs import ERRORS, USEFULNESS, FinishedRun

OF_ERRORS = ["d_lambda", "eps_95", "eps_95_noise", "predicted_eps_95", "gaussian_equivalent_m"]
OF_USEFULNESS = ["test_lds", "predicted_test_lds"]
COSTS = ["seconds", "seconds_a_call", "seconds_a_sample", "added_memory_bytes"]
KEY = ["proj_type", "m", "lambda"]
SAME_RIDGE = 1e-6
"""Relative: λ in units of the mean eigenvalue differ by rounding from run to run."""


def join(runs: tuple[FinishedRun, ...], timed: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (projection, m, λ) of the runs that was timed; what a run has not measured is empty.

    Args:
        runs: of spectrum_bounds.py, and of hyperparam_selection.py.
        timed: costs of every (projection, m).
    """
    errors = _stacked([run for run in runs if run.experiment == ERRORS], OF_ERRORS)
    usefulness = _stacked([run for run in runs if run.experiment != ERRORS], OF_USEFULNESS)
    known = _representatives([*errors["lambda"], *usefulness["lambda"]])
    errors, usefulness = (part.assign(**{"lambda": part["lambda"].map(known)}) for part in (errors, usefulness))
    table = timed.merge(errors, on=KEY[:2]).merge(usefulness, on=KEY, how="left")
    ordered = ["proj_type", "m", "numbers", "lambda", *OF_ERRORS, *OF_USEFULNESS, *COSTS]
    return table[ordered]


def describe_left_out(runs: tuple[FinishedRun, ...], table: pd.DataFrame) -> list[str]:
    """Return one line for every run of which the table has nothing."""
    lines = []
    for run in runs:
        rows = table[table["proj_type"] == run.law]
        if run.experiment == ERRORS and rows.empty:
            lines.append(f"{run.folder}: left out, none of its m is timed: {', '.join(map(str, run.config['ms']))}")
        if run.experiment == USEFULNESS and rows["test_lds"].isna().all():
            lines.append(f"{run.folder}: left out, no error of {run.law} is known at the m and λ of its LDS")
    return lines


def mean_stable_rank(runs: tuple[FinishedRun, ...]) -> float | None:
    """Return that of the model's gradients, which runs of factored projections have looked at."""
    found = [run.config.get("mean_stable_rank") for run in runs]
    return next((rank for rank in found if rank is not None), None)


def _representatives(ridges: list[float]) -> dict[float, float]:
    """Return for every λ the smallest of those that are the same but for rounding."""
    known: dict[float, float] = {}
    smallest = math.nan
    for ridge in sorted(set(ridges)):
        if not ridge <= smallest * (1 + SAME_RIDGE):
            smallest = ridge
        known[ridge] = smallest
    return known


def _stacked(runs: list[FinishedRun], columns: list[str]) -> pd.DataFrame:
    tables = [pd.read_csv(run.folder / "summary.csv").assign(proj_type=run.law) for run in runs]
    if not tables:
        return pd.DataFrame(columns=KEY + columns).astype({"m": int, "lambda": float})
    stacked = pd.concat([table.reindex(columns=KEY + columns) for table in tables])
    return stacked[stacked["m"] < math.inf].astype({"m": int})  # exact scores have m = inf
