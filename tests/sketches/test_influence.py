from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from common.sketches import influence
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
from tests.reference import DenseGradients, normal

pytestmark = pytest.mark.usefixtures("one_thread")

FALSE_ALARM = 1e-4
N_TRAIN, N_QUERIES, D = 14, 5, 30


def projected_problem(P, train, queries):
    """Return the problem of the queries, and the unit queries themselves."""
    gradients = DenseGradients(torch.cat([train, queries]))
    weights = torch.eye(len(gradients.unit), dtype=torch.float64)[len(train) :]
    problem = problem_from_projection((P @ gradients.unit.T).float(), gradients.norms, len(train), weights)
    return problem, gradients.unit[len(train) :]


def relative_gap(found, expected):
    """Return the largest difference relative to √φ(a) √φ(b)."""
    scale = expected.diagonal().sqrt()
    return ((found - expected).abs() / scale / scale[:, None]).max().item()


def scores(problem, ridge):
    rows = problem.whitened(ridge)
    return rows @ rows.T


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
    assert relative_gap(scores(problem, ridge), expected) < 1e-7 / ridge**0.5 + 2e-6
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
        assert relative_gap(scores(problem, ridge), expected) < 1e-5


@pytest.mark.parametrize("m", [4, 64])
def test_duplicated_dependent_and_zero_rows_leave_sketched_scores_right(m):
    train = normal(0, N_TRAIN, D)
    train[3], train[5], train[7] = train[2], 0, 1e-9 * (train[0] + train[1])
    queries = torch.cat([train[2:3], train[6:7] - train[1], normal(1, 2, D), torch.zeros(1, D, dtype=torch.float64)])
    P = normal(2, m, D) / m**0.5
    problem, unit_queries = projected_problem(P, train, queries)
    for ridge in (1e-3, 1.0):
        expected = reference.sketched_influence(P, train, unit_queries, unit_queries, ridge)
        found = scores(problem, ridge)
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


# --- Gaussian sketches of coordinates -----------------------------------------------------------------------


def coordinate_sketch(eigenvalues, trial=0, smallest_ridge=1e-12, seed=3):
    """Return the sketch of all unit vectors, so that the sketched vectors are R/√m itself."""
    identity = torch.eye(len(eigenvalues), dtype=torch.float64)
    return GaussianCoordinateSketch(eigenvalues, identity, smallest_ridge, seed, trial)


@pytest.mark.parametrize("m", [1, 4, 11, 12, 13, 48, 10**6])
def test_the_sketch_of_the_coordinate_axes_is_upper_trapezoidal(m):
    R = coordinate_sketch(torch.ones(12, dtype=torch.float64)).problem(m).vectors.T
    assert R.shape == (min(m, 12), 12)
    assert R.tril(-1).abs().max() == 0
    assert (R.diagonal() > 0).all()


@pytest.mark.parametrize("m", [1, 3, 11, 12, 13, 48])
@pytest.mark.parametrize("ridge", [1e-10, 1e-4, 1.0])
def test_scores_equal_the_dense_formula_with_the_same_sketch(m, ridge):
    eigenvalues = torch.logspace(1, -8, 12, dtype=torch.float64)
    eigenvalues[10:] = 0
    problem = coordinate_sketch(eigenvalues, smallest_ridge=1e-10).problem(m)
    R = problem.vectors.T
    # the sketch acts on training gradients √(n s_j) along axis j
    train = (12 * eigenvalues).sqrt().diag()
    axes = torch.eye(12, dtype=torch.float64)
    expected = reference.sketched_influence(R, train, axes, axes, ridge)
    assert relative_gap(scores(problem, ridge), expected) < (1e-4 if ridge < 1e-8 else 1e-7)


@pytest.mark.parametrize("m", [1, 2, 8, 11, 12, 13, 48])
def test_the_triangular_factor_has_the_moments_of_a_wishart_matrix(m):
    # RᵀR is a sum of m products of standard normals: mean m I, variance 2m on and m off the diagonal
    r, count = 12, 3000
    ones = torch.ones(r, dtype=torch.float64)
    R = [coordinate_sketch(ones, trial).problem(m).vectors for trial in range(count)]
    products = m**0.5 * (torch.stack([rows @ rows.T for rows in R]) - torch.eye(r, dtype=torch.float64))
    off = ~torch.eye(r, dtype=torch.bool)
    standard = products / torch.where(off, 1.0, 2**0.5)  # mean 0, variance 1
    assert (standard.mean(0).abs() * count**0.5).max() < norm.isf(FALSE_ALARM / r**2)
    for part in (standard[:, off], standard.diagonal(dim1=1, dim2=2)):
        squares = part.square().mean(1)
        z = (squares.mean() - 1) / (squares.std() / count**0.5)
        assert z.abs() < norm.isf(FALSE_ALARM / 2)


def largest_change(eigenvalues, m, ridge):
    """Return how far scores of one sketch lie, relatively, from those of the dense solve with all eigenvalues."""
    r = len(eigenvalues)
    problem = coordinate_sketch(eigenvalues, smallest_ridge=ridge).problem(m)
    R = problem.vectors.T
    factor = torch.linalg.cholesky((R * eigenvalues) @ R.T + ridge * torch.eye(len(R), dtype=torch.float64))
    queries = normal(1, 5, r) * torch.logspace(0, 3, r, dtype=torch.float64)
    expected = torch.linalg.solve_triangular(factor, R @ queries.T, upper=False).square().sum(0)
    whole = replace(problem, vectors=queries @ problem.vectors)
    return (sketched_self_influence(whole, ridge) / expected - 1).abs().max().item()


@pytest.mark.parametrize("m", [1, 2, 8, 60, 400, 4096])
@pytest.mark.parametrize("tail", ["steep", 0.99 * influence.NEGLIGIBLE, 0.99 * influence.WEAK])
def test_small_eigenvalues_change_no_score_by_more_than_they_may(m, tail):
    # a part of F seen through a Gaussian sketch of r columns is at most (1 + √(r/m))² times larger, up to fluctuations
    ridge, r = 1e-4, 400
    eigenvalues = torch.logspace(1, -25, r, dtype=torch.float64)
    if tail != "steep":
        eigenvalues[1:] = tail * ridge  # just below what is kept, or kept as it is
    assert largest_change(eigenvalues, m, ridge) < 1.5 * influence.NEGLIGIBLE * (1 + (r / m) ** 0.5) ** 2


@pytest.mark.parametrize("m", [200, 4096])
def test_what_the_elimination_of_weak_coordinates_leaves_out_is_twice_the_square_of_their_size(m, monkeypatch):
    ridge, r = 1e-4, 400
    growth = (1 + (r / m) ** 0.5) ** 2
    monkeypatch.setattr(influence, "NEGLIGIBLE", 0.0)
    for size in (1e-1, 1e-2, 1e-3):
        eigenvalues = torch.full((r,), size * ridge / growth, dtype=torch.float64)
        eigenvalues[:20] = torch.logspace(1, -3, 20, dtype=torch.float64)
        monkeypatch.setattr(influence, "WEAK", 1.001 * size)
        assert 1e-3 * size**2 < largest_change(eigenvalues, m, ridge) < 2 * size**2
        monkeypatch.setattr(influence, "WEAK", 0.0)
        assert largest_change(eigenvalues, m, ridge) < 1e-9


def test_one_sketch_serves_every_larger_ridge():
    eigenvalues = torch.logspace(1, -20, 60, dtype=torch.float64)
    shared = coordinate_sketch(eigenvalues, smallest_ridge=1e-8).problem(30)
    for ridge in (1e-8, 1e-4, 1.0, 1e3):
        own = coordinate_sketch(eigenvalues, smallest_ridge=ridge).problem(30)
        torch.testing.assert_close(
            sketched_self_influence(shared, ridge), sketched_self_influence(own, ridge), rtol=1e-6, atol=0
        )


def test_an_eigenvalue_of_zero_and_a_tiny_one_give_the_same_scores():
    eigenvalues = torch.logspace(0, -4, 20, dtype=torch.float64)
    tiny, zero = eigenvalues.clone(), eigenvalues.clone()
    tiny[10:], zero[10:] = 1e-30, 0
    for m in (4, 20, 80):
        torch.testing.assert_close(
            sketched_self_influence(coordinate_sketch(tiny).problem(m), 1e-6),
            sketched_self_influence(coordinate_sketch(zero).problem(m), 1e-6),
        )


def test_a_sketch_depends_on_seed_and_trial_only():
    eigenvalues = torch.logspace(0, -4, 20, dtype=torch.float64)

    def draw(seed, trial, m=8):
        return coordinate_sketch(eigenvalues, trial, seed=seed).problem(m).vectors

    assert torch.equal(draw(1, 0), draw(1, 0))
    for other in (draw(1, 1), draw(2, 0), draw(0, 1)):
        assert not torch.isclose(draw(1, 0), other).flatten().all()
        overlap = (draw(1, 0).triu(1) * other.triu(1)).sum() * 8  # mean 0, variance the number of entries
        assert overlap.abs() < norm.isf(FALSE_ALARM / 2) * 124**0.5


def test_the_order_in_which_sizes_are_asked_for_does_not_matter():
    sketch = coordinate_sketch(torch.logspace(0, -4, 20, dtype=torch.float64))
    first = {m: sketch.problem(m) for m in (4, 64, 16)}
    for m in (64, 16, 4):
        again = sketch.problem(m)
        assert torch.equal(again.vectors, first[m].vectors)
        assert torch.equal(again.fisher, first[m].fisher)


def test_a_huge_sketch_is_exact():
    # relative standard deviation √(2/m), here 1.4e-6
    eigenvalues = torch.logspace(1, -6, 20, dtype=torch.float64)
    m = 10**12
    found = sketched_self_influence(coordinate_sketch(eigenvalues).problem(m), 1e-5)
    expected = exact_self_influence(eigenvalues, torch.eye(20, dtype=torch.float64), 1e-5)
    torch.testing.assert_close(found, expected, rtol=norm.isf(FALSE_ALARM / 40) * (2 / m) ** 0.5, atol=0)
