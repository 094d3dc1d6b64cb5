"""Experiment 1 in numbers: the error of one sketch, the summary over sketches, predictions beside measurements."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.experiments.bounds.trial_noise import pooled_quantile_noise
from common.experiments.cells import CELL, CORRECTIONS, Cells, cell_rows, known_alone, predicted_index
from common.experiments.metrics import error_statistics
from common.experiments.one_sketch import score_sketch
from common.sketches.geometry import Geometry
from common.sketches.influence import SketchedProblem, exact_self_influence
from common.theory.cross_influence import predict_cross_error_at
from common.theory.gaussian_equivalent import gaussian_equivalent_dimensions
from common.theory.recommendation import smallest_dimensions, smallest_dimensions_of
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import PairProducts

SUMMARISED = ["mean_ratio", "mean_ratio_std", "eps_mean", "eps_50", "eps_95", "eps_95_noise", "eps_95_trial_mean"]
SUMMARISED += ["eps_95_std", "eps_99", "eps_max", "num_bad"]
FAR = 3.0  # noises from which on a gap counts as beyond noise
PREDICTED = ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99")
RECOMMENDED = ["m", "m_ridge_corrected"]


def exact_scores(cells: Cells, geometry: Geometry) -> list[Tensor]:
    """Return the (k,) values φ_λ of the queries for every λ; those of the reference sketch, where there is one."""
    return [exact_self_influence(geometry.eigenvalues, geometry.queries, solve) for solve in cells.reference_solves()]


def measure(problem: SketchedProblem, m: int, trial: int, cells: Cells, exact_scores: list[Tensor]) -> list[dict]:
    """Return one row a λ: the ratio φ̃_λ/φ_λ of every query under one sketch."""

    def ratios(whitened: Tensor, i: int) -> dict[str, list[float]]:
        return {"ratios": (whitened.square().sum(1) / exact_scores[i]).tolist()}

    return score_sketch(problem, cells, cell_rows(cells, m, trial), ratios)


def trial_table(units: pd.DataFrame) -> pd.DataFrame:
    """Return trials.csv: one row a (trial, m, λ) with the error statistics over the queries of one sketch."""
    table = units[CELL].assign(num_queries=units["ratios"].map(len))
    for prefix in _prefixes(units):
        if prefix:
            table[f"{prefix}lambda"] = units[f"{prefix}lambda"]
        if f"{prefix}ratios" not in units:
            continue
        measured = units[f"{prefix}ratios"].dropna()
        statistics = [dataclasses.asdict(error_statistics(torch.tensor(one, dtype=torch.float64))) for one in measured]
        table = table.join(pd.DataFrame(statistics, index=measured.index).add_prefix(prefix))
    return table


def summarise(units: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return one row an (m, λ): error statistics pooled over queries and trials, and how they vary over trials.

    ε_95 pooled stands beside its noise, `pooled_quantile_noise` with this seed, and beside mean and standard deviation
    over the trials of the ε_95 of each.
    """
    groups = units.groupby(["m", "lambda"], sort=True)
    trials = trial_table(units).groupby(["m", "lambda"], sort=True)
    summary = groups[["d_lambda", "m_over_d_lambda"]].first()
    summary.insert(2, "num_trials", groups.size())
    summary.insert(3, "num_queries", trials["num_queries"].first())
    for prefix in _prefixes(units):
        if prefix:
            summary[f"{prefix}lambda"] = groups[f"{prefix}lambda"].first()
        if f"{prefix}ratios" not in units:
            continue
        pooled = pd.DataFrame([_pool(ratios.dropna(), seed) for _, ratios in groups[f"{prefix}ratios"]], summary.index)
        pooled["mean_ratio_std"] = trials[f"{prefix}mean_ratio"].std()
        pooled["eps_95_trial_mean"] = trials[f"{prefix}eps_95"].mean()
        pooled["eps_95_std"] = trials[f"{prefix}eps_95"].std()
        summary = summary.join(pooled[SUMMARISED].add_prefix(prefix))
    return summary.reset_index()


def predict(cells: Cells, queries: Tensor) -> pd.DataFrame:
    """Return one row an (m, λ): the closed-form law of the error, from the spectrum and (k, r) queries alone.

    Predictions are empty where no law of the projection is known.
    """
    tables = []
    for prefix, corrected in cells.corrections.items():
        law = predict_self_influence(cells.spectrum, queries, cells.ms, cells.ridges, corrected, cells.sjlt_columns)
        tables.append(
            pd.DataFrame({f"predicted_{prefix}{name}": getattr(law, name).flatten().tolist() for name in PREDICTED})
        )
    return known_alone(pd.concat([predicted_index(cells), *tables], axis=1), cells)


def gaussian_equivalent(summary: pd.DataFrame, cells: Cells, queries: Tensor) -> list[float]:
    """Return for every row of `summarise` the m at which a Gaussian sketch has the measured ε_95; NaN for none."""
    ms, ridges = summary["m"].tolist(), summary["lambda"].tolist()
    measured = summary["eps_95"].to_numpy(dtype=np.float64)
    return gaussian_equivalent_dimensions(cells.spectrum, queries, ms, ridges, measured).tolist()


def prediction_gaps(summary: pd.DataFrame) -> dict[str, float | int | None]:
    """Return how far predicted ε_95 lies from the measured one, cells m >= 64 with ε_95 < 1, beside the trial noise.

    Of every ε_95 that the summary has: raw or corrected, of whole queries or of their parts.
    Gaps and noise are relative to the measured ε_95: median and worst gap, the noise where the worst gap is, and the
    number of cells with a gap beyond 3 noises, where that of a reference sketch counts as well. By chance alone that is
    a share of the cells that depends on the trials, see `pooled_quantile_noise`; cells of one run share random numbers,
    so that they stray together. None: not known.
    """
    gaps = {}
    parts = ("", "range_", "kernel_")
    for prefix in (f"{correction}{part}" for correction in CORRECTIONS for part in parts):
        if f"{prefix}eps_95" not in summary:
            continue
        measured, predicted = summary[f"{prefix}eps_95"], summary[f"predicted_{prefix}eps_95"]
        gap = ((predicted - measured).abs() / measured)[(summary["m"] >= 64) & (measured < 1)].dropna()
        noise = summary[f"{prefix}eps_95_noise"]
        if f"{prefix}eps_95_reference_std" in summary:
            noise = np.hypot(noise, summary[f"{prefix}eps_95_reference_std"])
        noise = (noise / measured)[gap.index]
        name = f"{prefix}eps_95_gap"
        gaps[f"{name}_median"] = gap.median() if len(gap) else None
        gaps[f"{name}_worst"] = gap.max() if len(gap) else None
        known = len(gap) and noise.notna().all()
        gaps[f"{name}_worst_noise"] = noise.iloc[int(gap.argmax())] if known else None
        gaps[f"{name}_beyond_noise"] = int((gap > FAR * noise).sum()) if known else None
        gaps[f"{name}_cells"] = len(gap)
    return gaps


def describe_gaps(gaps: dict[str, float | int | None]) -> str | None:
    """Return `prediction_gaps` of raw scores as one line; None where there is no cell."""
    if gaps.get("eps_95_gap_median") is None:
        return None
    gap = (
        f"predicted against measured ε_95 (m >= 64, ε_95 < 1): median gap {gaps['eps_95_gap_median']:.1%}, "
        f"worst {gaps['eps_95_gap_worst']:.1%}"
    )
    noise, beyond, cells = (gaps[f"eps_95_gap_{name}"] for name in ("worst_noise", "beyond_noise", "cells"))
    if beyond is None:
        return f"{gap} over {cells} cells (trial noise unknown: one trial)"
    return f"{gap} (trial noise there {noise:.1%}), beyond {FAR:g} times its noise in {beyond} of {cells} cells"


def recommend(cells: Cells, queries: Tensor, target: float, num_parameters: int) -> pd.DataFrame:
    """Return for every λ the smallest m < d with predicted ε_95 of self-influence <= target, to 0.3 %.

    Raw and ridge-corrected; beside it stands d_λ/target², what the theorem asks for up to its constant. None: not
    reached below d, or no law of the projection is known.
    """
    largest = num_parameters - 1

    def smallest(corrected: bool) -> list[int | None]:
        return smallest_dimensions(
            cells.spectrum, queries, cells.ridges, target, largest, corrected, cells.sjlt_columns
        )

    return _recommendation(cells, target, smallest)


def recommend_for_pairs(cells: Cells, left: Tensor, right: Tensor, target: float, num_parameters: int) -> pd.DataFrame:
    """Return `recommend` for the normalised error of cross scores over (p, r) pairs, one row a pair.

    Only m >= d_λ are recommended: below, a sketch finds nearly no score, which is a small error where pairs have none.
    """
    d_lambda = torch.tensor(cells.effective_dimensions, dtype=torch.float64)
    pairs = PairProducts.of(left, right)

    def smallest(corrected: bool) -> list[int | None]:
        def error(m: Tensor, ridge: Tensor) -> Tensor:
            law = predict_cross_error_at(cells.spectrum, pairs, m, ridge, corrected, cells.sjlt_columns)
            return torch.where(m >= d_lambda, law.eps_95, torch.inf)

        return smallest_dimensions_of(error, cells.ridges, target, num_parameters - 1)

    return _recommendation(cells, target, smallest)


def _recommendation(cells: Cells, target: float, smallest: Callable[[bool], list[int | None]]) -> pd.DataFrame:
    """Return the table of a recommendation; `smallest` gives m for every λ, raw or ridge corrected."""
    table = pd.DataFrame({"lambda": cells.ridges, "d_lambda": cells.effective_dimensions})
    for name, corrected in zip(RECOMMENDED, (False, True), strict=True):
        table[name] = smallest(corrected) if cells.has_law else pd.NA
    table = table.astype(dict.fromkeys(RECOMMENDED, "Int64"))
    theorem = [math.ceil(d_lambda / target**2) for d_lambda in cells.effective_dimensions]
    return table.assign(d_lambda_over_eps_squared=theorem)


def _prefixes(units: pd.DataFrame) -> list[str]:
    return [prefix for prefix in CORRECTIONS if not prefix or f"{prefix}lambda" in units]


def _pool(ratios: pd.Series, seed: int) -> dict[str, float | int]:
    """Return the statistics of all ratios of one (m, λ), given as one list a trial, with the noise behind ε_95."""
    by_trial = np.array(ratios.tolist(), dtype=np.float64)
    pooled = dataclasses.asdict(error_statistics(torch.from_numpy(by_trial.flatten())))
    noise = pooled_quantile_noise(np.abs(by_trial - 1), 0.95, seed) if len(by_trial) else math.nan
    return pooled | {"eps_95_noise": noise}
