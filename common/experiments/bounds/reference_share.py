"""Measured errors without the share of the reference: where exact scores are replaced by those of one large sketch.

With φ̂ = φ(1 + η) the reference, what is measured is r = φ̃/φ̂ ≈ ρ(1 − η), ρ the ratio to the exact score. η is the
same in all trials, independent of their sketches, and its covariance C over queries is known. Around the mean c over
queries and trials, the variance of r is therefore that of ρ and, with D_qp = r̄_q r̄_p C_qp and r̄_q means over trials,

    v = mean_q D_qq − mean_qp D_qp ,

which r' = c + (r − c) √(1 − v/Var r) is without. What all queries have in common, of variance mean_qp D_qp, moves c and
cannot be removed: it is an error of known size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from common.experiments.cells import CORRECTIONS, Cells
from common.theory.reference_noise import relative_covariance

NUM_DRAWS = 200


@dataclass(frozen=True)
class Adjusted:
    """The ratios of one (m, λ) without the share of the reference, and what that share was."""

    ratios: np.ndarray
    """(T, k) r'; NaN everywhere where the reference is noisier than what is measured."""
    share: float
    """v/Var r, the share of the variance of measured ratios that was the reference's."""


def remove_share(units: pd.DataFrame, cells: Cells, queries: Tensor, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of a sweep with adjusted ratios, and one row an (m, λ) with what the reference has to do with it.

    The second table has, each also with the prefix `corrected_` where ridge-corrected ratios were measured,
    `reference_share` (v/Var r), `eps_95_with_reference` (before it was removed), and the standard errors that the
    reference leaves, over other references of its size: `mean_ratio_reference_std`, `eps_95_reference_std`.

    Args:
        units: one row a (trial, m, λ) with lists of ratios to the reference's scores.
        cells: its spectrum is the reference's.
        queries: (k, M) coordinates in its eigenbasis.
        seed: of the draws behind the standard errors.
    """
    if cells.spectrum.size is None:
        raise ValueError("an exact reference has no share in the errors")
    units, tables = units.copy(), []
    covariances = {ridge: relative_covariance(cells.spectrum, queries, ridge).numpy() for ridge in cells.ridges}
    for prefix in CORRECTIONS:
        if f"{prefix}ratios" not in units:
            continue
        column, rows = units[f"{prefix}ratios"].copy(), []
        for (m, ridge), group in column.dropna().groupby([units["m"], units["lambda"]]):
            measured = np.array(group.tolist(), dtype=np.float64)
            adjusted = adjust(measured, covariances[ridge])
            for index, ratios in zip(group.index, adjusted.ratios, strict=True):
                column.at[index] = ratios.tolist()
            mean_std, error_std = _standard_errors(adjusted.ratios, covariances[ridge], seed)
            rows.append((m, ridge, adjusted.share, _quantile(measured), mean_std, error_std))
        units[f"{prefix}ratios"] = column
        names = ["reference_share", "eps_95_with_reference", "mean_ratio_reference_std", "eps_95_reference_std"]
        table = pd.DataFrame(rows, columns=["m", "lambda", *(prefix + name for name in names)])
        tables.append(table.set_index(["m", "lambda"]))
    return units, pd.concat(tables, axis=1).reset_index()


def adjust(ratios: np.ndarray, covariance: np.ndarray) -> Adjusted:
    """Return (T, k) ratios without the variance that a reference of (k, k) relative `covariance` has added to them."""
    finite = np.isfinite(ratios)
    if not finite.any():
        return Adjusted(ratios, np.nan)
    centre = ratios[finite].mean()
    variance = ((ratios[finite] - centre) ** 2).mean()
    if variance == 0:
        return Adjusted(ratios, np.nan)
    counts = finite.sum(0)
    means = np.where(finite, ratios, 0).sum(0) / np.maximum(counts, 1)
    weights = counts / counts.sum()
    carried = means[:, None] * covariance * means
    share = (weights @ carried.diagonal() - weights @ carried @ weights) / variance
    factor = np.sqrt(1 - share) if share < 1 else np.nan
    return Adjusted(centre + (ratios - centre) * factor, float(share))


def _standard_errors(ratios: np.ndarray, covariance: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the standard deviation of the mean ratio, and of ε_95, over references drawn anew and removed again."""
    if not np.isfinite(ratios).any():
        return np.nan, np.nan
    values, vectors = np.linalg.eigh(covariance)
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((NUM_DRAWS, len(values))) * np.sqrt(np.maximum(values, 0)) @ vectors.T
    means, errors = [], []
    for one in noise:
        drawn = adjust(ratios * (1 - one), covariance).ratios
        if np.isfinite(drawn).any():
            means.append(np.nanmean(drawn))
            errors.append(_quantile(drawn))
    return (float(np.std(means)), float(np.std(errors))) if means else (np.nan, np.nan)


def _quantile(ratios: np.ndarray) -> float:
    errors = np.abs(ratios[np.isfinite(ratios)] - 1)
    return float(np.quantile(errors, 0.95)) if len(errors) else np.nan
