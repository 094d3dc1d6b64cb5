from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from common.sketches import influence
from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.influence import (
    exact_self_influence,
    sketched_self_influence,
)
from tests import reference
from tests.reference import all_scores, normal, relative_gap

pytestmark = pytest.mark.usefixtures("one_thread")

FALSE_ALARM = 1e-4
N_TRAIN, N_QUERIES, D = 14, 5, 30


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
    assert relative_gap(all_scores(problem, ridge), expected) < (1e-4 if ridge < 1e-8 else 1e-7)


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
