"""Measured ratios without the share of the reference, on made-up ratios whose law is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.bounds import reference_share
from common.experiments.bounds.reference_share import adjust, remove_share
from common.experiments.cells import Cells
from common.theory.reference_noise import relative_covariance
from common.theory.sketched_spectrum import SketchedSpectrum
from common.theory.spectrum import ExactSpectrum

QUERIES, TRIALS = 400, 5


def covariance_of(own: float, common: float) -> np.ndarray:
    """Return a covariance with a part that every query has by itself, and one that all have in common."""
    return own**2 * np.eye(QUERIES) + common**2 * np.ones((QUERIES, QUERIES))


def simulated(seed: int, spread: float, own: float, common: float = 0.0, mean: float = 0.8):
    """Return (T, k) ratios to the exact scores, and the same to a reference with noise of its own."""
    generator = np.random.default_rng(seed)
    ratios = mean * (1 + spread * generator.standard_normal((TRIALS, QUERIES)))
    noise = own * generator.standard_normal(QUERIES) + common * generator.standard_normal()
    return ratios, ratios / (1 + noise)


@pytest.mark.parametrize(("spread", "own"), [(0.1, 0.05), (0.05, 0.05), (0.02, 0.03)])
def test_what_is_left_spreads_as_ratios_to_exact_scores_do(spread, own):
    found, expected, raw = [], [], []
    for seed in range(40):
        exact, measured = simulated(seed, spread, own)
        adjusted = adjust(measured, covariance_of(own, 0.0))
        assert adjusted.share == pytest.approx(own**2 / (own**2 + spread**2), abs=0.15)
        for kept, ratios in ((found, adjusted.ratios), (expected, exact), (raw, measured)):
            kept.append(ratios.std())
    # 40 runs of 400 queries know a standard deviation of the reference's noise to 0.6 %
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.03)
    assert np.mean(raw) > 1.1 * np.mean(expected)


def test_noise_that_all_queries_have_in_common_is_not_taken_out_a_second_time():
    _, measured = simulated(0, 0.05, 0.0, common=0.1)
    adjusted = adjust(measured, covariance_of(0.0, 0.1))
    # its mean over queries is in the centre, and what is left of it is zero but for the spread of trial means
    assert abs(adjusted.share) < 0.01


def test_the_mean_stays_and_ratios_that_are_not_finite_stay_where_they_are():
    _, measured = simulated(1, 0.1, 0.05)
    measured[2, 7] = np.nan
    adjusted = adjust(measured, covariance_of(0.05, 0.0))
    assert np.nanmean(adjusted.ratios) == pytest.approx(np.nanmean(measured), rel=1e-12)
    assert np.argwhere(np.isnan(adjusted.ratios)).tolist() == [[2, 7]]


def test_where_the_reference_is_noisier_than_what_is_measured_no_ratio_is_given():
    _, measured = simulated(2, 0.01, 0.01)
    adjusted = adjust(measured, covariance_of(0.05, 0.0))
    assert adjusted.share > 1
    assert np.isnan(adjusted.ratios).all()


# --- tables -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells_and_queries():
    generator = torch.Generator().manual_seed(4)
    spectrum = SketchedSpectrum(torch.logspace(1, -3, 300, dtype=torch.float64))
    queries = torch.randn(60, 300, generator=generator, dtype=torch.float64)
    return Cells(spectrum, [16], [0.1, 1.0], [2.0, 1.0], True), queries


def units_of(cells, queries, seed):
    """Return the rows of a sweep whose exact ratios are 1 + 0.2 z, and the errors of those."""
    generator = np.random.default_rng(seed)
    rows, errors = [], []
    for ridge in cells.ridges:
        covariance = relative_covariance(cells.spectrum, queries, ridge).numpy()
        noise = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(queries))) @ generator.standard_normal(len(queries))
        exact = 1 + 0.2 * generator.standard_normal((TRIALS, len(queries)))
        errors.append(np.quantile(np.abs(exact - 1), 0.95))
        for trial, ratios in enumerate(exact / (1 + noise)):
            rows.append({"trial": trial, "m": 16, "lambda": ridge, "ratios": ratios.tolist()})
            rows[-1]["corrected_ratios"] = ratios.tolist() if ridge > 0.5 else None
    return pd.DataFrame(rows), errors


def test_standard_errors_say_how_far_errors_are_off(cells_and_queries, monkeypatch):
    monkeypatch.setattr(reference_share, "NUM_DRAWS", 40)
    cells, queries = cells_and_queries
    deviations = []
    for seed in range(12):
        units, expected = units_of(cells, queries, seed)
        units = units.drop(columns="corrected_ratios")
        adjusted, table = remove_share(units, cells, queries, seed)
        assert table["lambda"].tolist() == cells.ridges
        for (_, row), error in zip(table.iterrows(), expected, strict=True):
            ratios = np.array(adjusted.loc[units["lambda"] == row["lambda"], "ratios"].tolist())
            found = np.quantile(np.abs(ratios - 1), 0.95)
            deviations.append((found - error) / row["eps_95_reference_std"])
            assert 0 < row["reference_share"] < 1
            assert row["mean_ratio_reference_std"] > 0
    # 24 standard normal numbers by standard deviations known to 11 %: mean square 1 to 0.3, and none beyond 4.5
    assert np.mean(np.square(deviations)) < 2.2
    assert np.abs(deviations).max() < 4.5


def test_cells_without_a_corrected_ridge_have_no_share(cells_and_queries):
    units, _ = units_of(*cells_and_queries, 0)
    adjusted, table = remove_share(units, *cells_and_queries, 0)
    assert table["corrected_reference_share"].isna().tolist() == [True, False]
    assert table["corrected_reference_share"][1] == table["reference_share"][1]
    assert adjusted["corrected_ratios"].isna().tolist() == units["corrected_ratios"].isna().tolist()


def test_an_exact_reference_is_refused(cells_and_queries):
    exact = Cells(ExactSpectrum(torch.ones(3)), [16], [0.1], [2.0], False)
    with pytest.raises(ValueError, match="exact"):
        remove_share(pd.DataFrame(), exact, cells_and_queries[1], 0)
