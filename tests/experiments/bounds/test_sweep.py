from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.bounds.sweep import (
    describe_gaps,
    exact_scores,
    measure,
    predict,
    prediction_gaps,
    recommend,
    recommend_for_pairs,
    summarise,
    trial_table,
)
from common.experiments.bounds.trial_noise import pooled_quantile_noise
from common.experiments.cells import Cells
from common.experiments.units import UnitLog
from common.sketches.influence import SketchedProblem
from common.sketches.projectors import make_projector
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher
from common.theory.cross_influence import predict_cross_error
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.geometries import geometry_from
from tests.reference import DenseGradients, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, D, RIDGES = 40, 120, [1e-4, 1e-2, 1.0]


def toy(num_queries=8, zero_query=False, query_rows=None):
    """Return training gradients, their store and geometry; the first rows are the queries, or those named."""
    spectrum = torch.logspace(1, -4, N_TRAIN, dtype=torch.float64)
    train = reference.gradients_with_spectrum(spectrum, N_TRAIN, D, seed=1)
    if zero_query:
        train[2] = 0
    gradients = DenseGradients(train)
    geometry = geometry_from(gradients, N_TRAIN, torch.arange(num_queries) if query_rows is None else query_rows)
    return train, gradients, geometry


def make_cells(geometry, ms, ridges=None, ridge_correction=False):
    ridges = ridges or RIDGES
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(ridges, dtype=torch.float64)).tolist()
    return Cells(spectrum, ms, ridges, d_lambda, ridge_correction)


def measured(problem, m, trial, cells, geometry):
    """Return the rows of trials.csv that one sketch gives."""
    rows = measure(problem, m, trial, cells, exact_scores(cells, geometry))
    return trial_table(pd.DataFrame(rows)).to_dict("records")


# --- one sketch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [4, 32, 64])
def test_measured_errors_equal_those_of_the_dense_formula(m):
    train, gradients, geometry = toy()
    projector = make_projector("rademacher", 3)
    cells = make_cells(geometry, [m], ridge_correction=True)
    sketcher = ExplicitSketcher(gradients, projector, N_TRAIN, geometry.scored.weights(geometry.norms), max_m=m)
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
                assert math.isnan(row.get("corrected_eps_95", math.nan))
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
    sketcher = CoordinateSketcher(geometry, cells.smallest_ridge(), seed=0)
    rows = [row for m, problem in sketcher.problems(2, [4, 8]) for row in measured(problem, m, 2, cells, geometry)]
    assert [(row["trial"], row["m"], row["lambda"]) for row in rows] == [(2, m, r) for m in (4, 8) for r in RIDGES]
    assert {row["num_queries"] for row in rows} == {8}


def test_a_query_without_gradient_is_counted_and_changes_no_other_number():
    _, _, geometry = toy(zero_query=True)
    cells = make_cells(geometry, [16])
    kept = torch.tensor([0, 1, 3, 4, 5, 6, 7])

    def rows_for(queries):
        _, _, chosen = toy(zero_query=True, query_rows=queries)
        sketcher = CoordinateSketcher(chosen, min(RIDGES), seed=0)
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


SEED, MS, NUM_TRIALS, NUM_QUERIES = 3, (8, 2), 3, 9
ERRORS = ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99", "eps_max")


def made_up_units(corrected_from=None):
    """Return the rows of 3 sketches of 9 queries in every cell; corrected ones for m >= `corrected_from`."""
    stream = np.random.default_rng(0)
    rows = []
    for trial in range(NUM_TRIALS):
        for m in MS:
            for ridge in (1.0, 0.01):
                row = {"trial": trial, "m": m, "lambda": ridge, "d_lambda": 7.0, "m_over_d_lambda": m / 7.0}
                row["ratios"] = stream.normal(1 + 0.1 * trial, 0.3, NUM_QUERIES).tolist()
                if corrected_from:
                    row["corrected_lambda"] = ridge / 8 if m >= corrected_from else math.nan
                    if m >= corrected_from:
                        row["corrected_ratios"] = stream.normal(1, 0.1, NUM_QUERIES).tolist()
                rows.append(row)
    return pd.DataFrame(rows)


def pooled(units, m, ridge, name="ratios"):
    """Return all ratios of a cell, those of one sketch a row."""
    return np.array(units[(units["m"] == m) & (units["lambda"] == ridge)][name].tolist())


def statistics(ratios):
    """Return mean ratio, then mean, quantiles and maximum of |ratio - 1|, in plain numpy."""
    errors = np.abs(ratios - 1)
    return [ratios.mean(), errors.mean(), *np.quantile(errors, [0.5, 0.95, 0.99, 1])]


def test_the_summary_has_one_row_a_cell_sorted_with_the_documented_columns():
    summary = summarise(made_up_units(), SEED)
    assert list(zip(summary["m"], summary["lambda"], strict=True)) == [(2, 0.01), (2, 1.0), (8, 0.01), (8, 1.0)]
    assert summary["num_trials"].eq(NUM_TRIALS).all()
    assert summary["num_queries"].eq(NUM_QUERIES).all()
    documented = (
        "m lambda d_lambda m_over_d_lambda num_trials num_queries mean_ratio mean_ratio_std "
        "eps_mean eps_50 eps_95 eps_95_noise eps_95_trial_mean eps_95_std eps_99 eps_max num_bad"
    )
    assert list(summary.columns) == documented.split()


def test_the_summary_pools_queries_and_trials_and_says_how_trials_differ():
    units = made_up_units()
    for row in summarise(units, SEED).to_dict("records"):
        ratios = pooled(units, row["m"], row["lambda"])
        assert [row[name] for name in ERRORS] == pytest.approx(statistics(ratios.flatten()), rel=1e-12)
        quantiles = np.quantile(np.abs(ratios - 1), 0.95, axis=1)
        assert row["eps_95_trial_mean"] == pytest.approx(quantiles.mean(), rel=1e-12)
        assert row["eps_95_std"] == pytest.approx(quantiles.std(ddof=1), rel=1e-12)
        assert row["mean_ratio_std"] == pytest.approx(ratios.mean(axis=1).std(ddof=1), rel=1e-12)
        assert row["eps_95_noise"] == pooled_quantile_noise(np.abs(ratios - 1), 0.95, SEED)
        assert row["eps_95"] != row["eps_95_trial_mean"]
        assert row["num_bad"] == 0


def test_every_finite_ratio_weighs_the_same_where_some_are_bad():
    units = made_up_units()
    units["ratios"][0][:5] = [math.nan, math.inf, -math.inf, math.nan, math.nan]  # of m = 8, λ = 1
    row = summarise(units, SEED).iloc[-1]
    ratios = pooled(units, 8, 1.0)
    finite = ratios[np.isfinite(ratios)]
    assert row["num_bad"] == 5
    assert [row[name] for name in ERRORS] == pytest.approx(statistics(finite), rel=1e-12)
    assert row["mean_ratio"] != pytest.approx(np.mean([one[np.isfinite(one)].mean() for one in ratios]), rel=1e-3)


def test_a_cell_without_a_finite_ratio_is_nan_and_all_of_it_counted():
    units = made_up_units()
    for ratios in units[(units["m"] == 2) & (units["lambda"] == 1.0)]["ratios"]:
        ratios[:] = [math.nan] * NUM_QUERIES
    summary = summarise(units, SEED).set_index(["m", "lambda"])
    assert summary.loc[(2, 1.0), "num_bad"] == NUM_TRIALS * NUM_QUERIES
    names = [*ERRORS, "eps_95_noise", "eps_95_trial_mean", "eps_95_std", "mean_ratio_std"]
    assert summary.loc[(2, 1.0), names].isna().all()
    assert summary.drop(index=(2, 1.0))[names].notna().all(axis=None)


def test_deviation_and_noise_over_one_trial_are_missing_and_not_zero():
    units = made_up_units()
    summary = summarise(units[units["trial"] == 0], SEED)
    assert summary[["eps_95_std", "eps_95_noise", "mean_ratio_std"]].isna().all(axis=None)
    assert summary["num_trials"].eq(1).all()
    assert summary["eps_95"].tolist() == summary["eps_95_trial_mean"].tolist()


def test_corrected_columns_are_summarised_where_they_exist():
    units = made_up_units(corrected_from=8)
    summary = summarise(units, SEED)
    corrected = [f"corrected_{name}" for name in (*ERRORS, "lambda", "eps_95_noise", "eps_95_trial_mean", "eps_95_std")]
    assert summary.loc[summary["m"] == 2, corrected].isna().all(axis=None)
    row = summary.iloc[-1]
    ratios = pooled(units[units["m"] == 8], 8, 1.0, "corrected_ratios")
    assert [row[f"corrected_{name}"] for name in ERRORS] == pytest.approx(statistics(ratios.flatten()), rel=1e-12)
    assert row["corrected_eps_95_noise"] == pooled_quantile_noise(np.abs(ratios - 1), 0.95, SEED)
    assert row["corrected_lambda"] == 1 / 8
    trials = trial_table(units)
    assert (trials["corrected_eps_95"].isna() == (trials["m"] == 2)).all()
    nowhere = summarise(made_up_units(corrected_from=16), SEED)
    assert [name for name in nowhere if name.startswith("corrected_")] == ["corrected_lambda"]


def test_units_that_were_stored_give_the_tables_of_units_that_were_not(tmp_path):
    units = made_up_units(corrected_from=8)
    log = UnitLog(tmp_path, {}, fresh=True)
    for (trial, m), rows in units.groupby(["trial", "m"]):
        log.append(trial, m, rows.to_dict("records"))
    stored = UnitLog(tmp_path, {}, fresh=False).table()
    pd.testing.assert_frame_equal(summarise(stored, SEED), summarise(units, SEED), check_exact=True)


# --- predictions beside measurements ------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", [False, True])
def test_predictions_lie_within_the_noise_of_the_measurements(corrected):
    # 60 trials; the closed form is asymptotic, so a few percent remain
    _, _, geometry = toy(num_queries=N_TRAIN)
    cells = make_cells(geometry, [64, 256], ridge_correction=corrected)
    sketcher = CoordinateSketcher(geometry, cells.smallest_ridge(), seed=0)
    exact = exact_scores(cells, geometry)
    rows = [
        row
        for trial in range(60)
        for m, problem in sketcher.problems(trial, cells.ms)
        for row in measure(problem, m, trial, cells, exact)
    ]
    table = summarise(pd.DataFrame(rows), SEED).merge(predict(cells, geometry.queries))
    assert len(table) == 6
    for prefix in ("", "corrected_") if corrected else ("",):
        for name in ("mean_ratio", "eps_mean"):
            gap = table[f"predicted_{prefix}{name}"] - table[prefix + name]
            assert gap.abs().max() < (0.02 if name == "mean_ratio" else 0.15 * table[prefix + name].max())
    assert prediction_gaps(table)["eps_95_gap_median"] < 0.15


def test_one_query_without_gradient_does_not_take_the_predictions_of_all():
    _, _, geometry = toy(zero_query=True)
    table = predict(make_cells(geometry, [16, 64]), geometry.queries)
    assert table.notna().all(axis=None)
    assert recommend(make_cells(geometry, [16]), geometry.queries, 0.5, BEYOND)["m"].notna().all()


def gap_table(**columns):
    measured = {"m": [32, 64, 64, 128], "eps_95": [0.5, 0.5, 1.5, 0.2], "predicted_eps_95": [5.0, 0.55, 9.0, 0.19]}
    return pd.DataFrame(measured | {"eps_95_noise": [0.1, 0.02, 0.1, 0.003]} | columns)


def test_gaps_look_at_cells_with_m_from_64_on_and_errors_below_one():
    gaps = prediction_gaps(gap_table())
    assert gaps["eps_95_gap_cells"] == 2
    assert gaps["eps_95_gap_worst"] == pytest.approx(0.1)
    assert gaps["eps_95_gap_median"] == pytest.approx(0.075)
    assert "corrected_eps_95_gap_median" not in gaps
    nothing = prediction_gaps(gap_table()[:1])
    assert nothing.pop("eps_95_gap_cells") == 0
    assert set(nothing.values()) == {None}
    assert describe_gaps(nothing) is None
    assert describe_gaps({}) is None


def test_beside_the_gaps_stands_their_noise():
    gaps = prediction_gaps(gap_table())
    assert gaps["eps_95_gap_worst_noise"] == pytest.approx(0.04)  # of the worst gap, 2.5 noises
    assert gaps["eps_95_gap_beyond_noise"] == 1  # the other one, 3.3 noises
    assert describe_gaps(gaps) == (
        "predicted against measured ε_95 (m >= 64, ε_95 < 1): median gap 7.5%, worst 10.0% (trial noise there 4.0%), "
        "beyond 3 times its noise in 1 of 2 cells"
    )


def test_the_noise_of_a_reference_sketch_counts_as_well():
    trials = prediction_gaps(gap_table())["eps_95_gap_worst_noise"]
    both = prediction_gaps(gap_table(eps_95_reference_std=gap_table()["eps_95_noise"] * 3**0.5))
    assert both["eps_95_gap_worst_noise"] == pytest.approx(2 * trials)
    assert both["eps_95_gap_beyond_noise"] == 0


def test_with_one_trial_the_noise_is_unknown_and_not_zero():
    gaps = prediction_gaps(gap_table(eps_95_noise=math.nan))
    assert (gaps["eps_95_gap_worst_noise"], gaps["eps_95_gap_beyond_noise"]) == (None, None)
    assert "median gap 7.5%, worst 10.0% over 2 cells (trial noise unknown: one trial)" in describe_gaps(gaps)


BEYOND = 2**24  # parameters: more than any recommended size

# --- the recommended size -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.3, 0.1])
def test_the_recommended_size_is_the_smallest_that_reaches_the_target(target):
    _, _, geometry = toy()
    cells = make_cells(geometry, [4])
    advice = recommend(cells, geometry.queries, target, BEYOND)
    for _, row in advice.iterrows():
        m, ridge = int(row["m"]), row["lambda"]

        def predicted(size, ridge=ridge):
            return predict(make_cells(geometry, [size], [ridge]), geometry.queries)["predicted_eps_95"][0]

        assert predicted(m) <= target
        assert predicted(math.floor(m * 0.997) - 1) > target
        assert row["d_lambda_over_eps_squared"] == math.ceil(row["d_lambda"] / target**2)


def test_ridge_correction_asks_for_smaller_sketches_where_the_bias_rules():
    _, _, geometry = toy()
    advice = recommend(make_cells(geometry, [4]), geometry.queries, 0.1, BEYOND)
    assert (advice["m_ridge_corrected"] <= advice["m"]).all()
    assert advice["m_ridge_corrected"][0] < advice["m"][0]


def test_a_target_out_of_reach_is_missing():
    _, _, geometry = toy()
    reached = recommend(make_cells(geometry, [4]), geometry.queries, 0.3, BEYOND)["m"]
    below = recommend(make_cells(geometry, [4]), geometry.queries, 0.3, int(reached.max()))["m"]
    assert (below.isna() == (reached >= reached.max())).all()
    assert recommend(make_cells(geometry, [4]), geometry.queries, 1e-5, BEYOND)["m"].isna().all()


def test_no_size_below_the_effective_dimension_is_recommended_for_pairs():
    """Pairs of different gradients have small scores, so that even a sketch of one row has a small error."""
    _, _, geometry = toy(num_queries=N_TRAIN)
    cells = make_cells(geometry, [4], ridges=[1e-3, 1e-1])
    left, right = geometry.queries[:-1], geometry.queries[1:]
    target = 0.15
    advice = recommend_for_pairs(cells, left, right, target, BEYOND)
    for ridge, d_lambda, m in zip(cells.ridges, cells.effective_dimensions, advice["m"], strict=True):
        smallest = math.ceil(d_lambda)
        errors = predict_cross_error(cells.spectrum, left, right, [smallest, int(m)], [ridge]).eps_95.flatten()
        assert m >= d_lambda
        assert errors[1] <= target
        assert m == smallest or errors[0] > target
