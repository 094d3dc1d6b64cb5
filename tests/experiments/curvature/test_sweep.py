from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from common.curvature import sketches
from common.curvature.coordinates import EKFAC, KFAC, BlockCoordinates
from common.experiments.curvature import sweep as curvature_sweep
from common.experiments.curvature.sweep import ExactScores, Ridges, SketchTask
from common.foundations.errors import UserError
from tests.curvature.references import bilinear, dense_curvature, factored_block, positive

RIDGES = Ridges((1e-3, 1e-1), relative=False)
SIZES = [(2, 2), (4, 3), (50, 50)]


def part(cols, rows, seed):
    """Return a block with 3 subsets and 5 queries, and its factors A and E."""
    a, e = positive(cols, cols, seed), positive(rows, rows, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(8, rows, cols, generator=generator)
    corrected = torch.rand(rows, cols, generator=generator, dtype=torch.float64)
    return BlockCoordinates(factored_block(a, e), corrected, vectors[:3], vectors[3:]), a, e


@pytest.fixture(scope="module")
def parts():
    return [part(6, 4, 0)[0], part(5, 3, 7)[0]]


@pytest.fixture(scope="module")
def task(parts):
    scores = ExactScores({}, {})
    own = [scores.add(one, RIDGES) for one in parts]
    return SketchTask(parts, own, 0, SIZES, RIDGES, seed=3), scores


def table(task, trials=2):
    return pd.DataFrame(
        {"trial": trial, "group": 0, **row} for trial in range(trials) for row in curvature_sweep.measure(task, trial)
    )


def test_a_relative_ridge_is_in_units_of_the_mean_eigenvalue_of_its_block():
    eigenvalues = torch.tensor([[1.0, 3.0], [0.0, 4.0]], dtype=torch.float64)
    assert Ridges((0.5, 2.0), relative=False).of(eigenvalues, "w").tolist() == [0.5, 2.0]
    assert Ridges((0.5, 2.0), relative=True).of(eigenvalues, "w").tolist() == [1.0, 4.0]
    with pytest.raises(UserError, match="--lambda_scale relative: the curvature of w is zero"):
        Ridges((1.0,), relative=True).of(0 * eigenvalues, "w")


def test_scores_of_the_model_are_sums_over_blocks_of_dense_ones(task, parts):
    _, scores = task
    assert set(scores.own) == {KFAC, EKFAC}
    for name in (KFAC, EKFAC):
        expected = torch.zeros(3, 5, dtype=torch.float64)
        for one in parts:
            matrix = torch.diag(one.eigenvalues[name].flatten())
            expected += bilinear(matrix, one.subset_sums.double(), one.queries.double(), 1e-1)
        torch.testing.assert_close(scores.cross[name][1], expected, rtol=1e-9, atol=1e-9)
    _, a, e = part(6, 4, 0)
    dense = torch.linalg.eigvalsh(dense_curvature(a, e))
    torch.testing.assert_close(parts[0].eigenvalues[KFAC].flatten().sort().values, dense, rtol=1e-6, atol=1e-12)


def test_sketched_scores_are_summed_over_blocks_too(task, parts):
    rows = [row for row in curvature_sweep.measure(task[0], 1) if (row["m_a"], row["m_e"]) == (2, 2)]
    ridges = torch.tensor(RIDGES.values, dtype=torch.float64)
    for kind in ("decoupled", "joint"):
        expected = torch.zeros(2, 5, dtype=torch.float64)
        for number, one in enumerate(parts):
            entropy = (3, 1, number)
            if kind == "decoupled":
                expected += sketches.decoupled(one.factored, one.queries, SIZES, ridges, entropy)[2, 2]
            else:
                expected += sketches.joint(one.factored, one.queries, [4, 12], ridges, entropy)[4]
        found = [row for row in rows if row["kind"] == kind]
        assert [row["m"] for row in found] == [8, 8]
        np.testing.assert_allclose([row["scores"] for row in found], expected, rtol=1e-9)


def test_the_summary_pools_ratios_over_queries_and_trials(task):
    units, own = table(task[0]), task[1].own[KFAC]
    summary = curvature_sweep.summarise(units, own, RIDGES, [4.0, 2.0]).set_index(["kind", "m_a", "lambda"])
    cell = units[(units["kind"] == "decoupled") & (units["m_a"] == 2) & (units["lambda"] == 1e-1)]
    ratios = np.concatenate([np.array(scores) / own[1].numpy() for scores in cell["scores"]])
    row = summary.loc[("decoupled", 2, 1e-1)]
    assert row["mean_ratio"] == pytest.approx(ratios.mean(), rel=1e-12)
    assert row["eps_95"] == pytest.approx(np.quantile(abs(ratios - 1), 0.95), rel=1e-12)
    assert (row["m"], row["d_lambda"], row["m_over_d_lambda"], row["num_trials"]) == (8, 2.0, 4.0, 2)
    whole = summary.xs(50, level="m_a")
    assert (whole["eps_max"] < 1e-12).all()
    assert (whole["m"] == 39).all()


def test_a_sketch_that_was_not_drawn_in_one_block_leaves_the_cell_of_the_model_empty(task, monkeypatch):
    monkeypatch.setattr(sketches, "JOINT_COST", 12**2 * 15)
    units = table(task[0])
    summary = curvature_sweep.summarise(units, task[1].own[KFAC], RIDGES, [4.0, 2.0])
    empty = summary[summary["eps_95"].isna()]
    assert set(zip(empty["kind"], empty["m_a"], empty["m"], strict=True)) == {("joint", 4, 24)}
    assert (empty["num_trials"] == 0).all()
    errors = curvature_sweep.block_errors(units)
    assert len(errors[(errors["kind"] == "joint") & (errors["m_a"] == 4)]) == 2  # the smaller block, two λ


def test_joint_sketches_are_predicted_as_they_are_measured(task, parts):
    """200 trials of 5 queries at fixed seeds; blocks so small that the law is good to 10 % only."""
    own = task[1].own[KFAC]
    law = curvature_sweep.joint_law(parts[0], task[0].own[0], SIZES, RIDGES)
    law = law + curvature_sweep.joint_law(parts[1], task[0].own[1], SIZES, RIDGES)
    predicted = curvature_sweep.predict(law, own, SIZES, RIDGES)
    measured = curvature_sweep.summarise(table(task[0], trials=200), own, RIDGES, [4.0, 2.0])
    both = measured.merge(predicted)
    assert both["kind"].eq("joint").all()
    assert len(both) == 3 * 2
    np.testing.assert_allclose(both["predicted_mean_ratio"], both["mean_ratio"], rtol=0.1)
    at_large_ridge = both[both["lambda"] == 1e-1]
    np.testing.assert_allclose(at_large_ridge["predicted_eps_95"], at_large_ridge["eps_95"], rtol=0.15, atol=1e-12)


def test_queries_without_a_gradient_are_counted(parts):
    silent = BlockCoordinates(
        parts[0].factored, parts[0].corrected, parts[0].subset_sums, torch.zeros_like(parts[0].queries)
    )
    scores = ExactScores({}, {})
    task = SketchTask([silent], [scores.add(silent, RIDGES)], 0, [(2, 2)], RIDGES, seed=3)
    units = table(task, trials=1)
    summary = curvature_sweep.summarise(units, scores.own[KFAC], RIDGES, [4.0, 2.0])
    assert (summary["num_bad"] == 5).all()
    assert curvature_sweep.block_errors(units)["num_bad"].tolist() == [5] * 4


def test_errors_of_a_block_are_means_over_trials(task):
    units = table(task[0], trials=3)
    errors = curvature_sweep.block_errors(units).set_index(["block", "kind", "m_a", "lambda"])
    assert errors["num_trials"].eq(3).all()
    cell = units[(units["kind"] == "joint") & (units["m_a"] == 2) & (units["lambda"] == 1e-3)]
    values = [blocks["w"][2] for blocks in cell["blocks"]]
    assert errors.loc[("w", "joint", 2, 1e-3), "eps_95"] == pytest.approx(np.mean(values), rel=1e-12)


def test_layers_have_the_dimensions_of_all_their_curvatures():
    one, a, e = part(6, 4, 0)
    fisher = torch.tensor([2.0, 0.5], dtype=torch.float64)
    table = curvature_sweep.block_table([one], {"w": fisher}, RIDGES)
    for i, ridge in enumerate(RIDGES.values):
        dense = torch.linalg.eigvalsh(dense_curvature(a, e))
        row = table.loc[i]
        assert row["d_lambda_kfac"] == pytest.approx((dense / (dense + ridge)).sum().item(), rel=1e-9)
        assert row["d_lambda_ekfac"] == pytest.approx((one.corrected / (one.corrected + ridge)).sum().item(), rel=1e-9)
        assert row["d_lambda_fisher"] == pytest.approx(2 / (2 + ridge) + 0.5 / (0.5 + ridge), rel=1e-12)
        assert row["d_lambda_factorised"] == pytest.approx(row["d_lambda_a"] * row["d_lambda_e"], rel=1e-12)
    assert curvature_sweep.block_table([one], {}, RIDGES)["d_lambda_fisher"].isna().all()


def test_the_best_row_is_chosen_by_validation_alone():
    lds = pd.DataFrame(
        {
            "curvature": ["kfac", "kfac", "full", "full", "ekfac"],
            "lambda": [1e-3, 1e-2, 1e-3, 1e-2, 1e-3],
            "val_lds": [0.1, 0.2, 0.4, 0.3, math.nan],
            "test_lds": [0.9, 0.0, 0.1, 0.9, 0.9],
        }
    )
    best = curvature_sweep.best_rows(lds)
    assert best[["curvature", "test_lds"]].to_numpy().tolist() == [["kfac", 0.0], ["full", 0.1]]
