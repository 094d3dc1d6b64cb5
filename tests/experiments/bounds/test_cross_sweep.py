from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.bounds import cross_sweep
from common.experiments.cells import Cells
from common.sketches.basis import basis_of_parameters, basis_of_samples
from common.sketches.geometry import ScoredVectors
from common.sketches.influence import SketchedProblem
from common.sketches.projectors import make_projector
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.reference import DenseGradients, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, N_QUERIES, D, RIDGES = 30, 8, 90, [1e-3, 1e-1, 10.0]
TRAIN_ROWS = torch.tensor([0, 3, 5, 11, 20, 29])


@pytest.fixture(scope="module")
def gradients():
    """Return training gradients, and queries of which about a half lies outside their span."""
    spectrum = torch.logspace(1, -4, N_TRAIN, dtype=torch.float64)
    train = reference.gradients_with_spectrum(spectrum, N_TRAIN, D, seed=1)
    queries = normal(3, N_QUERIES, N_TRAIN) @ train
    queries = queries / queries.norm(dim=1, keepdim=True) + 0.1 * normal(4, N_QUERIES, D)
    return DenseGradients(torch.cat([train, queries]))


def actual(gradients):
    """Return the (N, d) gradients, not scaled."""
    return gradients.unit * gradients.norms[:, None]


def make_task(gradients, ms, ridge_correction=False, kernel_parts=True, queries=None):
    queries = torch.arange(N_TRAIN, N_TRAIN + N_QUERIES) if queries is None else queries
    basis = basis_of_samples(gradients.unit_gram(), gradients.norms, N_TRAIN)
    geometry = basis.geometry(ScoredVectors(queries, None, TRAIN_ROWS, kernel_parts))
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(RIDGES, dtype=torch.float64)).tolist()
    cells = Cells(spectrum, ms, RIDGES, d_lambda, ridge_correction)
    return cross_sweep.make_task(geometry, cells, seed=0), basis


def explicit_sketcher(gradients, task, basis, projector, m):
    known = task.geometry
    weights = known.scored.weights(known.norms).to_dense()
    kernel = weights[-N_QUERIES:] - basis.range_weights(known.queries)
    return ExplicitSketcher(gradients, projector, N_TRAIN, torch.cat([weights, kernel]), max_m=m)


@pytest.mark.parametrize("kind", ["rademacher", "sjlt"])
@pytest.mark.parametrize("m", [16, 64])
def test_measured_errors_of_every_part_are_those_of_the_dense_formula(gradients, kind, m):
    task, basis = make_task(gradients, [m], ridge_correction=True)
    projector = make_projector(kind, 3)
    ((_, problem),) = explicit_sketcher(gradients, task, basis, projector, m).problems(0, [m])
    rows = cross_sweep.measure(problem, m, 0, task, cross_sweep.exact_pairs(task))
    P = projection_matrix(projector, D, m, m, trial=0)
    train, unit = actual(gradients)[:N_TRAIN], gradients.unit
    left, queries = unit[TRAIN_ROWS], unit[N_TRAIN:]
    span = torch.linalg.svd(train, full_matrices=False).Vh
    kernel = queries - queries @ span.T @ span
    fisher_inverse = torch.linalg.pinv(train.T @ train / N_TRAIN)
    unridged = [((v @ fisher_inverse) * v).sum(1).sqrt() for v in (left, queries)]
    for row in rows:
        ridge, d_lambda = row["lambda"], reference.effective_dimension(train, row["lambda"])
        exact = reference.influence(train, left, queries, ridge)
        own = [reference.influence(train, v, v, ridge).diagonal().sqrt() for v in (left, queries)]
        scale, scale_0 = own[0][:, None] * own[1], unridged[0][:, None] * unridged[1]
        for prefix, solved in {"": ridge, "corrected_": ridge * (1 - d_lambda / m)}.items():
            if solved <= 0:
                assert f"{prefix}eps_95" not in row
                continue
            whole = reference.sketched_influence(P, train, left, queries, solved)
            leaked = reference.sketched_influence(P, train, left, kernel, solved)
            expected = {
                "eps": (whole - exact) / scale,
                "eps0": (whole - exact) / scale_0,
                "range_eps": (whole - leaked - exact) / scale,
                "kernel_eps": leaked / scale,
            }
            for name, errors in expected.items():
                errors = errors.abs().numpy()
                found = [row[f"{prefix}{name}_{s}"] for s in cross_sweep.STATISTICS]
                statistics = [errors.mean(), *np.quantile(errors, [0.5, 0.95, 0.99, 1])]
                assert found == pytest.approx(statistics, rel=2e-4, abs=1e-6), (prefix, name)
            assert row[f"{prefix}num_bad"] == 0


def test_coordinates_and_explicit_weights_leave_the_same_part_in_the_kernel(gradients):
    task, basis = make_task(gradients, [16])
    scored = task.geometry.scored
    by_parameters = basis_of_parameters(gradients, N_TRAIN)
    for found in (basis.range_weights(task.geometry.queries), None):
        if found is None:
            geometry = by_parameters.geometry(scored, lambda: gradients)
            found = by_parameters.range_weights(geometry.queries, lambda: gradients)
        in_range = found @ gradients.unit
        span = torch.linalg.svd(actual(gradients)[:N_TRAIN], full_matrices=False).Vh
        expected = gradients.unit[N_TRAIN:] @ span.T @ span
        torch.testing.assert_close(in_range, expected, rtol=1e-6, atol=1e-8)
        assert (found[:, N_TRAIN:] == 0).all()
    kernel = scored.split(task.geometry.vectors).kernel
    torch.testing.assert_close(kernel.square().sum(1), task.geometry.outside_energy)
    assert (task.geometry.outside_energy > 0.1).any()


def units_of(task, trials, ms):
    sketcher = CoordinateSketcher(task.geometry, task.cells.smallest_ridge(), seed=0)
    exact = cross_sweep.exact_pairs(task)
    return pd.DataFrame(
        row
        for trial in range(trials)
        for m, problem in sketcher.problems(trial, ms)
        for row in cross_sweep.measure(problem, m, trial, task, exact)
    )


def test_predictions_lie_near_the_measurements(gradients):
    """40 sketches of 48 pairs: ε_95 has a standard error of up to 6 %, and the law is asymptotic in d_λ."""
    task, _ = make_task(gradients, [64, 256], ridge_correction=True)
    table = cross_sweep.summarise(units_of(task, 40, [64, 256]), task).merge(cross_sweep.predict(task))
    assert len(table) == 6
    for name in (*task.errors, "corrected_eps", "corrected_kernel_eps"):
        for statistic in ("mean", "95"):
            ratio = table[f"predicted_{name}_{statistic}"] / table[f"{name}_{statistic}"]
            assert ratio.between(0.8, 1.25).all(), (name, statistic, ratio.tolist())


def test_the_summary_pools_trials_and_says_how_they_differ(gradients):
    task, _ = make_task(gradients, [16, 64], kernel_parts=False)
    units = units_of(task, 3, [16, 64])
    assert task.errors == ("eps", "eps0")
    trials, summary = cross_sweep.trial_table(units, task), cross_sweep.summarise(units, task)
    assert trials["num_pairs"].eq(len(TRAIN_ROWS) * N_QUERIES).all()
    assert not [name for name in [*trials, *summary] if "quantiles" in name or "kernel" in name]
    for row in summary.to_dict("records"):
        cell = trials[(trials["m"] == row["m"]) & (trials["lambda"] == row["lambda"])]
        assert row["eps_mean"] == pytest.approx(cell["eps_mean"].mean(), rel=1e-12)
        assert row["eps_max"] == cell["eps_max"].max()
        assert row["eps_95_trial_mean"] == pytest.approx(cell["eps_95"].mean(), rel=1e-12)
        assert row["eps_95_std"] == pytest.approx(cell["eps_95"].std(), rel=1e-12)
        assert cell["eps_95"].min() <= row["eps_95"] <= cell["eps_95"].max()
        assert row["eps_95_noise"] > 0


def test_a_ridge_below_rounding_and_a_zero_query_are_counted(gradients):
    rows = actual(gradients)
    rows[N_TRAIN] = 0
    task, _ = make_task(DenseGradients(rows), [2])
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-15]], dtype=torch.float64)
    count = len(TRAIN_ROWS) + 2 * N_QUERIES
    exact = cross_sweep.exact_pairs(task)
    fine = cross_sweep.measure(SketchedProblem(singular, normal(0, count, 2)), 2, 0, task, exact)
    assert [row["num_bad"] for row in fine] == [len(TRAIN_ROWS)] * 3
    assert all(math.isfinite(row["eps_95"]) for row in fine)
    nothing = cross_sweep.pair_errors(torch.full((count, 1), math.nan).double(), exact[0], task)
    assert nothing["num_bad"] == len(TRAIN_ROWS) * N_QUERIES
    assert math.isnan(nothing["kernel_eps_95"])


def test_shares_of_energy_add_up_to_one(gradients):
    task, _ = make_task(gradients, [16])
    table = cross_sweep.query_table(task, torch.arange(N_QUERIES))
    assert (table["range_share"] + table["kernel_share"]).to_numpy() == pytest.approx(1)
    own, _ = make_task(gradients, [16], queries=torch.arange(N_QUERIES))
    assert cross_sweep.query_table(own, torch.arange(N_QUERIES))["kernel_share"].abs().max() < 1e-10
