from __future__ import annotations

import pytest
import torch

from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.geometry import resolved_ridge
from common.sketches.influence import (
    SketchedProblem,
    exact_influence,
    exact_self_influence,
    problem_from_projection,
    sketched_self_influence,
    whitened_or_nan,
)
from tests import reference
from tests.geometries import geometry_from
from tests.reference import DenseGradients, all_scores, generator, normal, relative_gap

pytestmark = pytest.mark.usefixtures("one_thread")

FALSE_ALARM = 1e-4
N_TRAIN, N_QUERIES, D = 14, 5, 30


def projected_problem(P, train, queries):
    """Return the problem of the queries, and the unit queries themselves."""
    gradients = DenseGradients(torch.cat([train, queries]))
    weights = torch.eye(len(gradients.unit), dtype=torch.float64)[len(train) :]
    problem = problem_from_projection((P @ gradients.unit.T).float(), gradients.norms, len(train), weights)
    return problem, gradients.unit[len(train) :]


# --- exact scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_exact_scores_equal_the_dense_solve(ridge):
    eigenvalues = torch.tensor([3.0, 0.5, 1e-3, 0.0], dtype=torch.float64)
    left, queries = normal(0, 6, 4), normal(1, 3, 4)
    system = eigenvalues.diag() + ridge * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(
        exact_influence(eigenvalues, left, queries, ridge), left @ torch.linalg.solve(system, queries.T)
    )
    torch.testing.assert_close(
        exact_self_influence(eigenvalues, queries, ridge),
        exact_influence(eigenvalues, queries, queries, ridge).diagonal(),
    )


# --- sketched scores from an explicit projection ------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 4, 14, 18, 19, 20, 28, 64])
@pytest.mark.parametrize("ridge", [1e-4, 1e-1, 10.0])
def test_scores_of_a_projection_equal_the_dense_formula_on_both_sides_of_m_equal_n(m, ridge):
    train, queries = normal(0, N_TRAIN, D), normal(1, N_QUERIES, D)
    P = normal(2, m, D) / m**0.5
    problem, unit_queries = projected_problem(P, train, queries)
    expected = reference.sketched_influence(P, train, unit_queries, unit_queries, ridge)
    assert len(problem.fisher) <= min(m, N_TRAIN + N_QUERIES)
    assert relative_gap(all_scores(problem, ridge), expected) < 1e-7 / ridge**0.5 + 2e-6
    torch.testing.assert_close(
        sketched_self_influence(problem, ridge), expected.diagonal(), rtol=2e-6 / min(ridge, 1) ** 0.5, atol=0
    )


@pytest.mark.parametrize("m", [4, 64])
def test_gradient_norms_over_ten_orders_of_magnitude_cost_a_sketch_no_accuracy(m):
    lengths = torch.logspace(-10, 1, N_TRAIN, dtype=torch.float64)[:, None]
    train, queries = normal(0, N_TRAIN, D) * lengths, normal(1, N_QUERIES, D) * 1e-9
    P = normal(2, m, D) / m**0.5
    problem, unit_queries = projected_problem(P, train, queries)
    for ridge in (1e-6, 1e-2, 1.0):
        expected = reference.sketched_influence(P, train, unit_queries, unit_queries, ridge)
        assert relative_gap(all_scores(problem, ridge), expected) < 1e-5


@pytest.mark.parametrize("m", [4, 64])
def test_duplicated_dependent_and_zero_rows_leave_sketched_scores_right(m):
    train = normal(0, N_TRAIN, D)
    train[3], train[5], train[7] = train[2], 0, 1e-9 * (train[0] + train[1])
    queries = torch.cat([train[2:3], train[6:7] - train[1], normal(1, 2, D), torch.zeros(1, D, dtype=torch.float64)])
    P = normal(2, m, D) / m**0.5
    problem, unit_queries = projected_problem(P, train, queries)
    for ridge in (1e-3, 1.0):
        expected = reference.sketched_influence(P, train, unit_queries, unit_queries, ridge)
        found = all_scores(problem, ridge)
        assert relative_gap(found[:4, :4], expected[:4, :4]) < 1e-5
        assert found[4].abs().max() == 0


HARD_SPECTRA = {
    "steep": torch.logspace(0, -16, 12, dtype=torch.float64),
    "one direction": torch.ones(1, dtype=torch.float64),
    "tail of the size of rounding": torch.tensor([1.0] * 4 + [1e-13] * 6, dtype=torch.float64),
    "tail of the size of the smallest ridge": torch.tensor([1.0] * 2 + [1e-12] * 10, dtype=torch.float64),
}


@pytest.mark.parametrize("eigenvalues", HARD_SPECTRA.values(), ids=HARD_SPECTRA.keys())
def test_scores_are_right_to_a_percent_down_to_the_smallest_ridge_and_refused_below(eigenvalues):
    train = reference.gradients_with_spectrum(eigenvalues, N_TRAIN, D, seed=7).float().double()
    gradients = DenseGradients(train)
    queries = gradients.unit[:4]
    geometry = geometry_from(gradients, N_TRAIN, torch.arange(4))
    ridge = 1.1 * resolved_ridge(geometry.eigenvalues.sum().item())
    expected = torch.tensor(reference.influence_in_many_digits(train, queries, ridge), dtype=torch.float64)
    found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    rank = len(geometry.eigenvalues)
    scaled, scaled_queries = (rank * geometry.eigenvalues).sqrt().diag(), torch.eye(rank, dtype=torch.float64)
    sketch = GaussianCoordinateSketch(geometry.eigenvalues, scaled_queries, 1e-3 * ridge, 0, 0)
    for m in (2, 9, N_TRAIN, 2 * N_TRAIN):
        P = normal(2, m, D) / m**0.5
        weights = torch.eye(N_TRAIN, dtype=torch.float64)[:4]
        projected = (P @ gradients.unit.T).float()
        problem = problem_from_projection(projected, gradients.norms, N_TRAIN, weights)
        smallest = 1.1 * resolved_ridge(problem.fisher.diagonal().sum().item())
        wanted = reference.sketched_influence_in_many_digits(P, train, queries, smallest)
        found = sketched_self_influence(problem, smallest)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0.01, atol=0)
        drawn = sketch.problem(m)
        smallest = 1.1 * resolved_ridge(drawn.fisher.diagonal().sum().item())
        wanted = reference.sketched_influence_in_many_digits(drawn.vectors.T, scaled, scaled_queries, smallest)
        found = sketched_self_influence(drawn, smallest)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0.01, atol=0)
        for refused in (problem, drawn):
            with pytest.raises(torch.linalg.LinAlgError, match="below the rounding"):
                refused.whitened(1e-3 * ridge)
            assert sketched_self_influence(refused, 1e-3 * ridge).isnan().all()


def test_a_ridge_below_rounding_is_an_error_that_callers_can_catch():
    fisher = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-15]], dtype=torch.float64)
    problem = SketchedProblem(fisher, torch.eye(2, dtype=torch.float64))
    with pytest.raises(torch.linalg.LinAlgError):
        problem.whitened(1e-300)
    assert whitened_or_nan(problem, 1e-300).isnan().all()
    assert whitened_or_nan(problem, 1e-300).shape == (2, 1)
    assert torch.equal(whitened_or_nan(problem, 0.1), problem.whitened(0.1))


def test_short_gradients_are_not_factored_where_they_weigh_nothing_and_scores_stay_as_they_are():
    """Lengths from 10 down to 1e-9: against the dense formula, to what is left out."""
    n, d = 40, 60
    lengths = torch.logspace(1, -9, n, dtype=torch.float64)[:, None]
    train = normal(8, n, d) / d**0.5 * lengths[torch.randperm(n, generator=generator(9))]
    gradients, m = DenseGradients(torch.cat([train, normal(10, 3, d)])), 4 * n
    P = normal(11, m, d) / m**0.5
    weights = torch.eye(n + 3, dtype=torch.float64)[::2]
    problem = problem_from_projection((P @ gradients.unit.T).float(), gradients.norms, n, weights)
    factored = []
    for ridge in (1e-8, 1e-4, 1.0):
        expected = reference.sketched_influence(P, train, gradients.unit[::2], gradients.unit[::2], ridge)
        found = problem.whitened(ridge)
        scale = expected.diagonal().sqrt()
        assert ((found @ found.T - expected).abs() / scale / scale[:, None]).max() < 1e-5
        factored.append(problem._block_sizes(ridge)[0])
    assert factored == sorted(factored, reverse=True)
    assert factored[-1] < factored[0] < n


@pytest.mark.parametrize("m", [5, 40])
def test_what_was_projected_is_left_as_it_was(m):
    """With m below and above N, and float64, where no conversion makes a copy."""
    projected, norms, weights = normal(13, m, 20), torch.arange(1.0, 21).double(), torch.eye(20, dtype=torch.float64)
    before = projected.clone()
    first = problem_from_projection(projected, norms, 15, weights).whitened(0.1)
    assert torch.equal(projected, before)
    assert torch.equal(problem_from_projection(projected, norms, 15, weights).whitened(0.1), first)


@pytest.mark.parametrize("seed", range(4))
def test_near_copies_of_gradients_in_few_directions_do_not_spoil_the_scores(seed):
    """Rank 300 of 480 rows, 60 of them near copies. Pivoting inside blocks alone: 1e-3 off here, elsewhere half."""
    n, rank, m = 480, 300, 500
    rows = normal(seed, n, rank)
    rows[240:270] = rows[:30] * (1 + 1e-3 * normal(seed + 10, 30, rank))
    rows[450:] = rows[:30] * (1 + 1e-6 * normal(seed + 20, 30, rank))
    rows /= rows.norm(dim=1, keepdim=True)
    norms = torch.logspace(0, -4, n, dtype=torch.float64)[torch.randperm(n, generator=generator(seed))]
    projected = rows @ normal(30, rank, m) / m**0.5
    weights = torch.eye(n, dtype=torch.float64)
    found = problem_from_projection(projected.T, norms, n, weights)
    fisher = (projected * norms[:, None]).T @ (projected * norms[:, None]) / n
    dense = SketchedProblem(fisher, projected)
    for ridge in (1e-11, 1e-8, 1e-4):
        expected = sketched_self_influence(dense, ridge)
        torch.testing.assert_close(sketched_self_influence(found, ridge), expected, rtol=1e-4, atol=0)
