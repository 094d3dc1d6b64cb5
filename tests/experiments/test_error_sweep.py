from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.cells import Cells
from common.experiments.error_sweep import exact_scores, measure, predict, prediction_gaps, recommend, summarise
from common.sketches.geometry import build_geometry
from common.sketches.influence import SketchedProblem
from common.sketches.projectors import make_projector
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.reference import DenseGradients, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, D, RIDGES = 40, 120, [1e-4, 1e-2, 1.0]


def toy(num_queries=8, zero_query=False):
    """Return training gradients, their store and geometry; the first rows are the queries."""
    spectrum = torch.logspace(1, -4, N_TRAIN, dtype=torch.float64)
    train = reference.gradients_with_spectrum(spectrum, N_TRAIN, D, seed=1)
    if zero_query:
        train[2] = 0
    gradients = DenseGradients(train)
    geometry = build_geometry(gradients.unit_gram(), gradients.norms, N_TRAIN, torch.arange(num_queries))
    return train, gradients, geometry


def make_cells(geometry, ms, ridges=None, ridge_correction=False):
    ridges = ridges or RIDGES
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(ridges, dtype=torch.float64)).tolist()
    return Cells(spectrum, ms, ridges, d_lambda, ridge_correction)


def measured(problem, m, trial, cells, geometry):
    return measure(problem, m, trial, cells, geometry, exact_scores(cells, geometry))


# --- one sketch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [4, 32, 64])
def test_measured_errors_equal_those_of_the_dense_formula(m):
    train, gradients, geometry = toy()
    projector = make_projector("rademacher", 3)
    cells = make_cells(geometry, [m], ridge_correction=True)
    sketcher = ExplicitSketcher(gradients, projector, N_TRAIN, geometry.query_weights(), max_m=m)
    ((_, problem),) = sketcher.problems(0, [m])
    P, queries = projection_matrix(projector, D, m, m, trial=0), gradients.unit[:8]
    for row in measured(problem, m, 0, cells, geometry):
        ridge = row["lambda"]
        d_lambda = reference.effective_dimension(train, ridge)
        exact = reference.influence(train, queries, queries, ridge).diagonal()
        solved = {"": ridge, "corrected_": ridge * (1 - d_lambda / m)}
        assert row["d_lambda"] == pytest.approx(d_lambda, rel=1e-9)
        assert row["m_over_d_lambda"] == pytest.approx(m / d_lambda, rel=1e-9)
        for prefix, value in solved.items():
            if value <= 0:
                assert math.isnan(row["corrected_lambda"])
                assert "corrected_eps_95" not in row
                continue
            ratios = (reference.sketched_influence(P, train, queries, queries, value).diagonal() / exact).numpy()
            errors = np.abs(ratios - 1)
            found = [row[prefix + name] for name in ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99", "eps_max")]
            expected = [ratios.mean(), errors.mean(), *np.quantile(errors, [0.5, 0.95, 0.99, 1])]
            assert found == pytest.approx(expected, abs=3e-5)
            assert row[prefix + "num_bad"] == 0


def test_rows_carry_trial_m_lambda_and_the_number_of_queries():
    _, _, geometry = toy()
    cells = make_cells(geometry, [4, 8])
    sketcher = CoordinateSketcher(geometry, geometry.query_weights(), cells.smallest_ridge(), seed=0)
    rows = [row for m, problem in sketcher.problems(2, [4, 8]) for row in measured(problem, m, 2, cells, geometry)]
    assert [(row["trial"], row["m"], row["lambda"]) for row in rows] == [(2, m, r) for m in (4, 8) for r in RIDGES]
    assert {row["num_queries"] for row in rows} == {8}


def test_a_query_without_gradient_is_counted_and_changes_no_other_number():
    _, _, geometry = toy(zero_query=True)
    cells = make_cells(geometry, [16])
    kept = torch.tensor([0, 1, 3, 4, 5, 6, 7])

    def rows_for(queries):
        weights = torch.eye(N_TRAIN, dtype=torch.float64)[queries]
        chosen = build_geometry(geometry.rows @ geometry.rows.T, geometry.norms, N_TRAIN, queries)
        sketcher = CoordinateSketcher(chosen, weights, min(RIDGES), seed=0)
        return [row for m, problem in sketcher.problems(0, [16]) for row in measured(problem, m, 0, cells, chosen)]

    for all_queries, without in zip(rows_for(torch.arange(8)), rows_for(kept), strict=True):
        assert (all_queries["num_bad"], without["num_bad"]) == (1, 0)
        assert all_queries["eps_95"] == pytest.approx(without["eps_95"])


def test_a_ridge_below_rounding_makes_every_query_bad_and_is_no_exception():
    _, _, geometry = toy()
    fisher = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-15]], dtype=torch.float64)
    problem = SketchedProblem(fisher, normal(0, 8, 2))
    for row in measured(problem, 2, 0, make_cells(geometry, [2], [1e-300, 1e-30]), geometry):
        assert row["num_bad"] == 8
        assert math.isnan(row["eps_95"])
        assert math.isnan(row["mean_ratio"])


# --- over sketches ------------------------------------------------------------------------------------------


def trials_table():
    return pd.DataFrame(
        [
            {"trial": t, "m": m, "lambda": r, "d_lambda": 7.0, "m_over_d_lambda": m / 7.0, "num_queries": 9,
             "mean_ratio": 1 + 0.1 * t, "eps_mean": 0.1, "eps_50": 0.1, "eps_95": 0.1 * m + t, "eps_99": 0.3,
             "eps_max": 0.4 + t, "num_bad": t}
            for t in range(3) for m in (8, 2) for r in (1.0, 0.01)
        ]
    )  # fmt: skip


def test_the_summary_has_one_row_a_cell_sorted_with_means_deviations_and_counts():
    summary = summarise(trials_table())
    assert list(zip(summary["m"], summary["lambda"], strict=True)) == [(2, 0.01), (2, 1.0), (8, 0.01), (8, 1.0)]
    row = summary.iloc[-1]
    assert row["num_trials"] == 3
    assert row["num_queries"] == 9
    assert row["mean_ratio"] == pytest.approx(1.1)
    assert row["mean_ratio_std"] == pytest.approx(0.1)
    assert row["eps_95"] == pytest.approx(1.8)
    assert row["eps_95_std"] == pytest.approx(1.0)
    assert row["eps_max"] == pytest.approx(1.4)
    assert row["num_bad"] == 3
    documented = (
        "m lambda d_lambda m_over_d_lambda num_trials num_queries mean_ratio mean_ratio_std "
        "eps_mean eps_50 eps_95 eps_95_std eps_99 eps_max num_bad"
    )
    assert list(summary.columns) == documented.split()


def test_the_deviation_over_one_trial_is_missing_and_not_zero():
    summary = summarise(trials_table().query("trial == 0"))
    assert summary["eps_95_std"].isna().all()
    assert summary["num_trials"].eq(1).all()


def test_corrected_columns_are_summarised_where_they_exist():
    trials = trials_table()
    trials["corrected_eps_95"] = np.where(trials["m"] == 8, 0.05, np.nan)
    summary = summarise(trials)
    assert summary["corrected_eps_95"].isna().tolist() == [True, True, False, False]
    assert summary["corrected_eps_95_std"].tolist()[2:] == [0, 0]


# --- predictions beside measurements ------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", [False, True])
def test_predictions_lie_within_the_noise_of_the_measurements(corrected):
    # 60 trials; the closed form is asymptotic, so a few percent remain (ε_95 of 8 queries a trial, averaged)
    _, _, geometry = toy(num_queries=N_TRAIN)
    cells = make_cells(geometry, [64, 256], ridge_correction=corrected)
    sketcher = CoordinateSketcher(geometry, geometry.query_weights(), cells.smallest_ridge(), seed=0)
    rows = [
        row
        for trial in range(60)
        for m, problem in sketcher.problems(trial, cells.ms)
        for row in measured(problem, m, trial, cells, geometry)
    ]
    table = summarise(pd.DataFrame(rows)).merge(predict(cells, geometry))
    assert len(table) == 6
    for prefix in ("", "corrected_") if corrected else ("",):
        for name in ("mean_ratio", "eps_mean"):
            gap = table[f"predicted_{prefix}{name}"] - table[prefix + name]
            assert gap.abs().max() < (0.02 if name == "mean_ratio" else 0.15 * table[prefix + name].max())
    assert prediction_gaps(table)["eps_95_gap_median"] < 0.15


def test_one_query_without_gradient_does_not_take_the_predictions_of_all():
    _, _, geometry = toy(zero_query=True)
    table = predict(make_cells(geometry, [16, 64]), geometry)
    assert table.notna().all(axis=None)
    assert recommend(make_cells(geometry, [16]), geometry, 0.5, BEYOND)["m"].notna().all()


def test_gaps_look_at_cells_with_m_from_64_on_and_errors_below_one():
    summary = pd.DataFrame(
        {"m": [32, 64, 64, 128], "eps_95": [0.5, 0.5, 1.5, 0.2], "predicted_eps_95": [5.0, 0.55, 9.0, 0.19]}
    )
    gaps = prediction_gaps(summary)
    assert gaps["eps_95_gap_cells"] == 2
    assert gaps["eps_95_gap_worst"] == pytest.approx(0.1)
    assert gaps["eps_95_gap_median"] == pytest.approx(0.075)
    assert "corrected_eps_95_gap_median" not in gaps
    nothing = prediction_gaps(summary[:1])
    assert nothing == {"eps_95_gap_median": None, "eps_95_gap_worst": None, "eps_95_gap_cells": 0}


BEYOND = 2**24  # parameters: more than any recommended size

# --- the recommended size -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.3, 0.1])
def test_the_recommended_size_is_the_smallest_that_reaches_the_target(target):
    _, _, geometry = toy()
    cells = make_cells(geometry, [4])
    advice = recommend(cells, geometry, target, BEYOND)
    for _, row in advice.iterrows():
        m, ridge = int(row["m"]), row["lambda"]

        def predicted(size, ridge=ridge):
            return predict(make_cells(geometry, [size], [ridge]), geometry)["predicted_eps_95"][0]

        assert predicted(m) <= target
        assert predicted(math.floor(m * 0.997) - 1) > target
        assert row["d_lambda_over_eps_squared"] == math.ceil(row["d_lambda"] / target**2)


def test_ridge_correction_asks_for_smaller_sketches_where_the_bias_rules():
    _, _, geometry = toy()
    advice = recommend(make_cells(geometry, [4]), geometry, 0.1, BEYOND)
    assert (advice["m_ridge_corrected"] <= advice["m"]).all()
    assert advice["m_ridge_corrected"][0] < advice["m"][0]


def test_a_target_out_of_reach_is_missing():
    _, _, geometry = toy()
    reached = recommend(make_cells(geometry, [4]), geometry, 0.3, BEYOND)["m"]
    below = recommend(make_cells(geometry, [4]), geometry, 0.3, int(reached.max()))["m"]
    assert (below.isna() == (reached >= reached.max())).all()
    assert recommend(make_cells(geometry, [4]), geometry, 1e-5, BEYOND)["m"].isna().all()
