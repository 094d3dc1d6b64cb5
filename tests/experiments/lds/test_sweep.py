from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from common.experiments.cells import Cells
from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.selection import select
from common.experiments.run import bad_values
from common.sketches.influence import SketchedProblem
from common.sketches.projectors import make_projector
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher
from common.theory.spectrum import ExactSpectrum, effective_dimension
from common.workloads.records import GroundTruth
from tests import reference
from tests.geometries import geometry_from
from tests.reference import DenseGradients, generator, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, N_QUERIES, D, SUBSETS, RIDGES = 40, 12, 120, 15, [1e-4, 1e-2, 1.0]


@pytest.fixture(scope="module")
def train():
    spectrum = torch.logspace(1, -4, N_TRAIN, dtype=torch.float64)
    return reference.gradients_with_spectrum(spectrum, N_TRAIN, D, seed=1)


@pytest.fixture(scope="module")
def queries(train):
    return normal(3, N_QUERIES, N_TRAIN) @ train + 0.1 * normal(4, N_QUERIES, D)


@pytest.fixture(scope="module")
def truth(train, queries):
    """Losses that influence explains in part, of more test samples than are queries."""
    chosen = generator(5)
    members = torch.stack([torch.randperm(N_TRAIN, generator=chosen)[:20].sort().values for _ in range(SUBSETS)])
    sums = torch.stack([train[subset].sum(0) for subset in members])
    losses = torch.zeros(SUBSETS, 2 * N_QUERIES)
    explained = -reference.influence(train, sums, queries, 1e-2)
    losses[:, ::2] = (explained + explained.std(0) * normal(6, SUBSETS, N_QUERIES)).float()
    return GroundTruth(members, losses)


@pytest.fixture(scope="module")
def gradients(train, queries):
    return DenseGradients(torch.cat([train, queries]))


def make_task(gradients, truth, ms, ridges=None, ridge_correction=False, seed=0):
    ridges = ridges or RIDGES
    rows = torch.arange(N_TRAIN, N_TRAIN + N_QUERIES)
    geometry = geometry_from(gradients, N_TRAIN, rows, truth.subset_indices)
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(ridges, dtype=torch.float64)).tolist()
    cells, samples = Cells(spectrum, ms, ridges, d_lambda, ridge_correction), torch.arange(0, 2 * N_QUERIES, 2)
    return lds_sweep.make_task(geometry, truth, samples, cells, num_val=5, seed=seed)


def subset_sums(train, truth):
    return torch.stack([train[subset].sum(0) for subset in truth.subset_indices])


def spearman(scores, truth):
    """(k,) by scipy; the predicted loss is minus the score."""
    losses = truth.losses[:, ::2].double()
    return [spearmanr(-scores[:, i], losses[:, i]).statistic for i in range(N_QUERIES)]


def units_of(task, ms, trials=3):
    sketcher = CoordinateSketcher(task.geometry, task.cells.smallest_ridge(), seed=0)
    return pd.DataFrame(
        row
        for trial in range(trials)
        for m, problem in sketcher.problems(trial, ms)
        for row in lds_sweep.measure(problem, m, trial, task)
    )


# --- the task -----------------------------------------------------------------------------------------------


def test_every_query_either_selects_or_judges_and_the_seed_says_which(gradients, truth):
    task = make_task(gradients, truth, [8])
    assert [len(task.groups[name]) for name in ("val", "test")] == [5, 7]
    assert sorted(torch.cat(list(task.groups.values())).tolist()) == list(range(N_QUERIES))
    assert torch.equal(task.groups["val"], make_task(gradients, truth, [8]).groups["val"])
    others = [make_task(gradients, truth, [8], seed=seed).groups["val"].tolist() for seed in range(1, 6)]
    assert any(other != task.groups["val"].tolist() for other in others)


def test_the_vectors_to_sketch_are_the_sums_of_the_actual_gradients_then_the_unit_queries(
    gradients, truth, train, queries
):
    task = make_task(gradients, truth, [8])
    unit = queries / queries.norm(dim=1, keepdim=True)
    expected = torch.cat([subset_sums(train, truth), unit])
    torch.testing.assert_close(task.geometry.scored.weights(gradients.norms) @ gradients.unit, expected)
    torch.testing.assert_close(task.geometry.vectors @ task.geometry.vectors.T, expected @ expected.T)
    torch.testing.assert_close(task.losses, truth.losses[:, ::2].double())


# --- one sketch, and none -----------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [8, 32, 64])
def test_the_lds_of_a_sketch_is_scipys_rank_correlation_of_dense_scores(gradients, truth, train, m):
    task = make_task(gradients, truth, [m], ridge_correction=True)
    projector = make_projector("rademacher", 3)
    weights = task.geometry.scored.weights(gradients.norms)
    ((_, problem),) = ExplicitSketcher(gradients, projector, N_TRAIN, weights, max_m=m).problems(1, [m])
    P, sums = projection_matrix(projector, D, m, m, trial=1), subset_sums(train, truth)
    rows = lds_sweep.measure(problem, m, 1, task)
    assert [(row["trial"], row["m"], row["lambda"]) for row in rows] == [(1, m, ridge) for ridge in RIDGES]
    for row in rows:
        corrected = row["lambda"] * (1 - reference.effective_dimension(train, row["lambda"]) / m)
        for prefix, ridge in (("", row["lambda"]), ("corrected_", corrected)):
            if ridge <= 0:
                assert math.isnan(row["corrected_lambda"])
                assert "corrected_per_query" not in row
                continue
            scores = reference.sketched_influence(P, train, sums, gradients.unit[N_TRAIN:], ridge)
            assert row[f"{prefix}per_query"] == pytest.approx(spearman(scores, truth), abs=1e-12)
    assert m == 8 or "corrected_per_query" in rows[-1]


def test_exact_rows_are_the_dense_scores_without_a_sketch(gradients, truth, train):
    task = make_task(gradients, truth, [8])
    rows = lds_sweep.exact_rows(task)
    assert rows["m"].tolist() == [math.inf] * 3
    for _, row in rows.iterrows():
        scores = reference.influence(train, subset_sums(train, truth), gradients.unit[N_TRAIN:], row["lambda"])
        assert row["per_query"] == pytest.approx(spearman(scores, truth), abs=1e-12)


def test_a_ridge_below_rounding_makes_every_query_bad_and_is_no_exception(gradients, truth):
    task = make_task(gradients, truth, [2], ridges=[1e-300])
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-15]], dtype=torch.float64)
    units = pd.DataFrame(lds_sweep.measure(SketchedProblem(singular, normal(0, SUBSETS + N_QUERIES, 2)), 2, 0, task))
    assert np.isnan(units["per_query"][0]).all()
    trials = lds_sweep.trial_table(units, task)
    assert trials[["val_num_bad", "test_num_bad"]].to_numpy().tolist() == [[5, 7]]
    assert trials[["val_lds", "test_lds"]].isna().all(axis=None)


def test_the_predicted_best_ridge_is_measured_beside_the_grid_and_changes_no_number_of_it(gradients, truth):
    task = make_task(gradients, truth, [16, 64], ridge_correction=True)
    beside = dataclasses.replace(task, path={16: 0.03, 64: RIDGES[1]})
    units, more = units_of(task, [16, 64]), units_of(beside, [16, 64])
    (extra,) = more.loc[~more["lambda"].isin(RIDGES), "lambda"].unique()
    assert extra == 0.03
    assert (more.loc[more["lambda"] == extra, "m"] == 16).all()
    trials = lds_sweep.trial_table(more, beside)
    expected = effective_dimension(task.cells.spectrum, 0.03).item()
    assert trials.loc[trials["lambda"] == extra, "d_lambda"].tolist() == pytest.approx([expected] * 3)
    exact = lds_sweep.summarise(lds_sweep.exact_rows(task), task)
    grids = [
        lds_sweep.selection_grid(lds_sweep.trial_table(u, t), exact, t) for u, t in ((units, task), (more, beside))
    ]
    np.testing.assert_array_equal(grids[0].val_lds, grids[1].val_lds)
    resampled = [lds_sweep.resampled_grid(u, t) for u, t in ((units, task), (more, beside))]
    np.testing.assert_array_equal(*resampled)
    assert resampled[0].shape == (2, 3, 500)
    # around the mean itself: resampled correlations are as high but for a small bias
    assert resampled[0].mean(-1) == pytest.approx(grids[0].val_lds.mean(0), abs=0.1)


# --- tables -------------------------------------------------------------------------------------------------


def test_trials_hold_the_mean_of_each_group_and_summaries_mean_and_deviation_over_trials(gradients, truth):
    task = make_task(gradients, truth, [16, 64], ridge_correction=True)
    units = units_of(task, [16, 64])
    trials, summary = lds_sweep.trial_table(units, task), lds_sweep.summarise(units, task)
    for name, group in task.groups.items():
        expected = [np.mean(np.array(per_query)[group.numpy()]) for per_query in units["per_query"]]
        assert trials[f"{name}_lds"].tolist() == pytest.approx(expected)
    assert list(zip(summary["m"], summary["lambda"], strict=True)) == [(m, r) for m in (16, 64) for r in RIDGES]
    assert summary["num_trials"].eq(3).all()
    for _, row in summary.iterrows():
        cell = trials[(trials["m"] == row["m"]) & (trials["lambda"] == row["lambda"])]
        for column in ("val_lds", "test_lds", "corrected_test_lds"):
            values = cell[column].to_numpy()
            if np.isnan(values).all():
                assert row["m"] <= row["d_lambda"]
                assert math.isnan(row[column])
                continue
            assert row[column] == pytest.approx(values.mean())
            assert row[f"{column}_std"] == pytest.approx(values.std(ddof=1))
            assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
        assert row["m_over_d_lambda"] == pytest.approx(row["m"] / row["d_lambda"])


def test_a_query_without_a_correlation_is_counted_and_left_out(gradients, truth):
    constant = truth.losses.clone()
    constant[:, 0] = 0.5
    task = make_task(gradients, GroundTruth(truth.subset_indices, constant), [16])
    whole = make_task(gradients, truth, [16])
    units, others = units_of(task, [16]), units_of(whole, [16])
    group = "val" if 0 in task.groups["val"] else "test"
    trials = lds_sweep.trial_table(units, task)
    assert trials[f"{group}_num_bad"].eq(1).all()
    kept = task.groups[group][task.groups[group] != 0].numpy()
    assert trials[f"{group}_lds"].tolist() == pytest.approx([np.mean(np.array(q)[kept]) for q in others["per_query"]])


def test_the_grid_for_the_choice_has_the_measured_numbers_of_its_own_m_in_order(gradients, truth):
    task = make_task(gradients, truth, [16, 64])
    units = units_of(task, [16, 23, 64])  # 23: a recommended point beside the grid
    trials = lds_sweep.trial_table(units, task).sample(frac=1, random_state=0)
    exact = lds_sweep.summarise(lds_sweep.exact_rows(task), task)
    grid = lds_sweep.selection_grid(trials, exact, task)
    assert grid.val_lds.shape == (3, 2, 3)
    for t, m, ridge in np.ndindex(3, 2, 3):
        cell = trials.query(f"trial == {t} and m == {task.cells.ms[m]}").set_index("lambda").loc[RIDGES[ridge]]
        assert (grid.val_lds[t, m, ridge], grid.test_lds[t, m, ridge]) == (cell["val_lds"], cell["test_lds"])
    assert grid.exact_test_lds.tolist() == exact["test_lds"].tolist()
    assert select(grid).largest_m == 64


def test_predictions_lie_within_the_noise_of_the_measurements(gradients, truth):
    """40 sketches: the mean LDS has a standard error of about 0.02; asymptotic in d_λ, so 0.03 are its own."""
    task = make_task(gradients, truth, [32, 128], ridge_correction=True)
    summary = lds_sweep.summarise(units_of(task, [32, 128], trials=40), task)
    table = summary.merge(lds_sweep.predict([32, 128], task))
    assert len(table) == 6
    for prefix in ("", "corrected_"):
        for name in ("val_lds", "test_lds"):
            gap = (table[f"predicted_{prefix}{name}"] - table[prefix + name]).abs().dropna()
            assert len(gap) >= 4
            assert gap.max() < 0.1
    gaps = lds_sweep.prediction_gaps(table)
    assert gaps["test_lds_gap_cells"] == 3  # m = 128 alone: 32 is too small


def test_the_joined_table_ends_in_the_exact_rows_and_prints_whole_m():
    table = lds_sweep.join(pd.DataFrame({"m": [16.0, 32.0]}), pd.DataFrame({"m": [math.inf]}))
    assert table["m"].tolist() == [16, 32, math.inf]
    assert table.to_csv(index=False).split() == ["m", "16", "32", "inf"]


def test_a_cell_without_a_corrected_ridge_counts_no_bad_correlation(gradients, truth):
    task = make_task(gradients, truth, [2, 64], ridge_correction=True)
    units = units_of(task, [2, 64])
    trials, summary = lds_sweep.trial_table(units, task), lds_sweep.summarise(units, task)
    without = trials["corrected_lambda"].isna()
    assert without.any()
    assert not without.all()
    for name in ("corrected_val_num_bad", "corrected_test_num_bad"):
        assert (trials[name].isna() == without).all()
        assert trials.loc[~without, name].eq(0).all()
    assert bad_values(summary, "correlations") is None


def test_what_is_missing_in_a_row_of_the_summary_is_nan_which_a_float_can_be(gradients, truth):
    task = make_task(gradients, truth, [2, 64], ridge_correction=True)
    units = units_of(task, [2, 64])
    summary = lds_sweep.summarise(units[units["trial"] == units["trial"].min()], task)
    assert summary["val_lds_std"].isna().all()  # of one sketch
    assert math.isnan(summary.iloc[0]["val_lds_std"])
