from __future__ import annotations

import pytest
import torch

from common.curvature import scores, sketches
from common.curvature.sketches import decoupled, joint, kept_size
from common.foundations.seeds import make_generator
from tests.curvature.references import bilinear, factored_block, positive

RIDGES = torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.float64)
SIZES = [(3, 2), (5, 2), (9, 2), (3, 6), (9, 6)]


@pytest.fixture(scope="module")
def problem():
    factored = factored_block(positive(9, 7, 0), positive(6, 6, 1))
    coordinates = torch.randn(8, 6, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return factored, coordinates


def entries(rows, cols, *entropy):
    return torch.randn(rows, cols, generator=make_generator("cpu", *entropy), dtype=torch.float64)


@pytest.mark.parametrize("tile_bytes", [sketches.TILE_BYTES, 8 * 6 * 9 * 3])
def test_decoupled_scores_are_those_of_the_explicit_kronecker_projection(problem, tile_bytes, monkeypatch):
    monkeypatch.setattr(sketches, "TILE_BYTES", tile_bytes)
    factored, coordinates = problem
    found = decoupled(factored, coordinates, SIZES, RIDGES, (5, 1, 0))
    a, e = torch.diag(factored.a.eigenvalues), torch.diag(factored.e.eigenvalues)
    of_a, of_e = entries(5, 9, 5, 1, 0, 1), entries(2, 6, 5, 1, 0, 2)
    for m_a, m_e in SIZES:
        p_a = of_a[:m_a] / m_a**0.5 if m_a < 9 else torch.eye(9, dtype=torch.float64)
        p_e = of_e[:m_e] / m_e**0.5 if m_e < 6 else torch.eye(6, dtype=torch.float64)
        projection = torch.kron(p_e, p_a)
        fisher = projection @ torch.kron(e, a) @ projection.T
        sketched = coordinates.flatten(1) @ projection.T
        for i, ridge in enumerate(RIDGES.tolist()):
            expected = bilinear(fisher, sketched, sketched, ridge).diagonal()
            torch.testing.assert_close(found[m_a, m_e][i], expected, rtol=1e-9, atol=0)


def test_sides_that_stay_whole_give_exact_scores(problem):
    factored, coordinates = problem
    found = decoupled(factored, coordinates, [(9, 6), (100, 100)], RIDGES, (5, 1, 0))
    exact = scores.self_influence(factored.eigenvalues, coordinates, RIDGES)
    for value in found.values():
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=0)
    assert kept_size(factored, 100, 4) == 36


def test_joint_scores_are_those_of_the_explicit_projection_whatever_the_tiles(problem, monkeypatch):
    factored, coordinates = problem
    monkeypatch.setattr(sketches, "TILE_BYTES", 8 * 20 * 10)
    found = joint(factored, coordinates, [4, 20, 54], RIDGES, (5, 1, 0))
    assert set(found) == {4, 20}
    tiles = [entries(20, min(10, 54 - start), 5, 1, 0, 3, tile) for tile, start in enumerate(range(0, 54, 10))]
    for m, value in found.items():
        projection = torch.cat(tiles, 1)[:m] / m**0.5
        fisher = projection @ torch.diag(factored.eigenvalues.flatten()) @ projection.T
        sketched = coordinates.flatten(1) @ projection.T
        for i, ridge in enumerate(RIDGES.tolist()):
            expected = bilinear(fisher, sketched, sketched, ridge).diagonal()
            torch.testing.assert_close(value[i], expected, rtol=1e-9, atol=0)


def test_joint_sketches_that_would_take_minutes_are_not_drawn(problem, monkeypatch):
    factored, coordinates = problem
    monkeypatch.setattr(sketches, "JOINT_COST", 10**2 * 54)
    assert set(joint(factored, coordinates, [10, 11], RIDGES, (5, 1, 0))) == {10}
    assert joint(factored, coordinates, [11], RIDGES, (5, 1, 0)) == {}


def test_trials_differ_and_the_same_trial_repeats(problem):
    factored, coordinates = problem
    one, again, other = (decoupled(factored, coordinates, [(3, 2)], RIDGES, (5, trial, 0)) for trial in (0, 0, 1))
    assert (one[3, 2] == again[3, 2]).all()
    assert (one[3, 2] != other[3, 2]).any()


def test_at_a_large_ridge_both_kinds_have_the_variance_of_a_projected_length(problem):
    """λφ̃ is ‖Pg‖² there: mean 1, variance (1+2/a)(1+2/b) − 1 for rank one and decoupled, 2/m for joint.

    600 trials with fixed seeds: standard errors of the variances are 7 % (joint) and 18 %.
    """
    factored, _ = problem
    unit = torch.zeros(1, 6, 9, dtype=torch.float64)
    unit[0, 2, 4] = 1.0
    ridge = torch.tensor([1e9], dtype=torch.float64)
    found = []
    for trial in range(600):
        entropy = (0, trial, 0)
        apart = decoupled(factored, unit, [(4, 3)], ridge, entropy)[4, 3]
        found.append(torch.cat([apart, joint(factored, unit, [12], ridge, entropy)[12]], 1)[0] * 1e9)
    variances, means = torch.var_mean(torch.stack(found), 0)
    assert (means - 1).abs().max() < 0.12
    expected = torch.tensor([(1 + 2 / 4) * (1 + 2 / 3) - 1, 2 / 12], dtype=torch.float64)
    torch.testing.assert_close(variances, expected, rtol=0.5, atol=0)
