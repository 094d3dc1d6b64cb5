"""Experiment 1 in numbers: the error of one sketch, the summary over sketches, predictions beside measurements."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
from torch import Tensor

from common.experiments.cells import Cells
from common.experiments.metrics import error_statistics
from common.sketches.geometry import Geometry
from common.sketches.influence import SketchedProblem, exact_self_influence, sketched_self_influence
from common.theory.recommendation import smallest_dimensions
from common.theory.self_influence import predict_self_influence

PREDICTED = ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99")


def exact_scores(cells: Cells, geometry: Geometry) -> list[Tensor]:
    """Return the (k,) values φ_λ of the queries for every λ."""
    queries = geometry.queries
    return [exact_self_influence(geometry.eigenvalues, queries, ridge) for ridge in cells.ridges]


def measure(
    problem: SketchedProblem, m: int, trial: int, cells: Cells, geometry: Geometry, exact_scores: list[Tensor]
) -> list[dict]:
    """Return one row a λ: error statistics of φ̃_λ/φ_λ over the queries, for one sketch."""
    rows = []
    columns = (cells.ridges, cells.effective_dimensions, cells.corrected(m), exact_scores)
    for ridge, d_lambda, corrected, exact in zip(*columns, strict=True):
        row = {"trial": trial, "m": m, "lambda": ridge, "d_lambda": d_lambda, "m_over_d_lambda": _ratio(m, d_lambda)}
        row["num_queries"] = len(exact)
        row |= dataclasses.asdict(error_statistics(sketched_self_influence(problem, ridge) / exact))
        if cells.ridge_correction:
            row["corrected_lambda"] = corrected
            if not math.isnan(corrected):
                statistics = error_statistics(sketched_self_influence(problem, corrected) / exact)
                row |= {f"corrected_{name}": value for name, value in dataclasses.asdict(statistics).items()}
        rows.append(row)
    return rows


def summarise(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row an (m, λ): means over the trials, standard deviations of the headline numbers, counts."""
    groups = trials.groupby(["m", "lambda"], sort=True)
    kept = ["d_lambda", "m_over_d_lambda", "num_queries"]
    statistics = [name for name in trials.columns if name not in ("trial", "m", "lambda", *kept)]
    summary = groups[kept].first()
    summary.insert(2, "num_trials", groups.size())
    for name in statistics:
        bad = name.endswith("num_bad")
        summary[name] = groups[name].sum() if bad else groups[name].mean()
        if name.endswith(("mean_ratio", "eps_95")):
            summary[f"{name}_std"] = groups[name].std()
    return summary.reset_index()


def predict(cells: Cells, geometry: Geometry) -> pd.DataFrame:
    """Return one row an (m, λ): the closed-form law of the error, from the spectrum and the queries alone."""
    tables = []
    for corrected in (False, True) if cells.ridge_correction else (False,):
        law = predict_self_influence(
            cells.spectrum, geometry.queries, cells.ms, cells.ridges, corrected, cells.sjlt_columns
        )
        prefix = "predicted_corrected_" if corrected else "predicted_"
        tables.append(pd.DataFrame({prefix + name: getattr(law, name).flatten().tolist() for name in PREDICTED}))
    index = pd.MultiIndex.from_product([cells.ms, cells.ridges], names=["m", "lambda"]).to_frame(index=False)
    index["d_lambda"] = index["lambda"].map(dict(zip(cells.ridges, cells.effective_dimensions, strict=True)))
    index["m_over_d_lambda"] = index["m"] / index["d_lambda"]
    return pd.concat([index, *tables], axis=1)


def prediction_gaps(summary: pd.DataFrame) -> dict[str, float | int | None]:
    """Return the median and the worst relative gap of predicted to measured ε_95, cells m >= 64 with ε_95 < 1."""
    gaps = {}
    for prefix in ("", "corrected_"):
        if f"{prefix}eps_95" not in summary:
            continue
        measured, predicted = summary[f"{prefix}eps_95"], summary[f"predicted_{prefix}eps_95"]
        gap = ((predicted - measured).abs() / measured)[(summary["m"] >= 64) & (measured < 1)].dropna()
        gaps[f"{prefix}eps_95_gap_median"] = gap.median() if len(gap) else None
        gaps[f"{prefix}eps_95_gap_worst"] = gap.max() if len(gap) else None
        gaps[f"{prefix}eps_95_gap_cells"] = len(gap)
    return gaps


def recommend(cells: Cells, geometry: Geometry, target: float, num_parameters: int) -> pd.DataFrame:
    """Return for every λ the smallest m < d with predicted ε_95 <= target, raw and ridge-corrected, to 0.3 %.

    Beside it stands d_λ/target², what the theorem asks for up to its constant. None: not reached below d.
    """
    largest = num_parameters - 1
    smallest = {
        name: smallest_dimensions(
            cells.spectrum, geometry.queries, cells.ridges, target, largest, corrected, cells.sjlt_columns
        )
        for name, corrected in (("m", False), ("m_ridge_corrected", True))
    }
    table = pd.DataFrame({"lambda": cells.ridges, "d_lambda": cells.effective_dimensions, **smallest})
    theorem = [math.ceil(d_lambda / target**2) for d_lambda in cells.effective_dimensions]
    return table.assign(d_lambda_over_eps_squared=theorem).astype(dict.fromkeys(smallest, "Int64"))


def _ratio(m: int, d_lambda: float) -> float:
    return m / d_lambda if d_lambda > 0 else math.inf
