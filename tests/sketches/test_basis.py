"""The eigenvectors of F as a basis, beside the one from inner products and beside dense or many-digit scores."""

from __future__ import annotations

import pytest
import torch

from common.sketches import basis as bases
from common.sketches.basis import ParameterBasis, SampleBasis, basis_of_parameters, basis_of_samples, build_basis
from common.sketches.geometry import ScoredVectors, resolved_ridge
from common.sketches.influence import exact_influence, exact_self_influence
from tests import reference
from tests.reference import DenseGradients, normal

N, D, K = 60, 24, 7
SCORED = ScoredVectors(torch.tensor([0, 17, *range(N, N + K)]), torch.tensor([[0, 4, 9, 59], [1, 2, 3, 40]]))


def rows_of_ten_decades():
    """Return N + K gradients in D dimensions, lengths 1e-10 to 1, the directions of 9 of them nearly alike."""
    rows = normal(0, N + K, D)
    rows[20:29] = rows[20] + 1e-2 * rows[20:29]
    return rows / rows.norm(dim=1, keepdim=True) * torch.logspace(-10, 0, N + K, dtype=torch.float64).flip(0)[:, None]


def both(rows):
    """Return the geometries by F and by inner products."""
    gradients = DenseGradients(rows)
    by_samples = basis_of_samples(gradients.unit_gram(), gradients.norms, N).geometry(SCORED)
    return basis_of_parameters(gradients, N).geometry(SCORED, lambda: gradients), by_samples


def test_the_smaller_side_is_taken_and_no_gram_matrix_made_where_parameters_are_fewer(monkeypatch):
    assert isinstance(build_basis(DenseGradients(normal(0, 9, 10)), 9), SampleBasis)

    def refuse(self):
        raise AssertionError("an N x N matrix is made")

    monkeypatch.setattr(DenseGradients, "unit_gram", refuse)
    assert isinstance(build_basis(DenseGradients(normal(0, 11, 10)), 9), ParameterBasis)


@pytest.mark.parametrize("relative", [1e-7, 1e-5, 1e-2, 1.0])
def test_both_routes_agree_to_eight_digits_over_ten_decades_of_gradient_norms(relative):
    """Scores of short and long queries and subset sums, and d_λ; from λ = 1e-7 tr F on."""
    by_parameters, by_samples = both(rows_of_ten_decades())
    ridge = relative * by_samples.eigenvalues.sum().item()
    scores = [exact_influence(g.eigenvalues, g.vectors, g.vectors, ridge) for g in (by_parameters, by_samples)]
    scale = scores[1].diagonal().sqrt()
    assert ((scores[0] - scores[1]).abs() / scale / scale[:, None]).max() < 1e-8


@pytest.mark.parametrize("relative", [1e-12, 1e-10, 1e-8])
def test_down_to_the_resolved_ridge_rounding_of_f_costs_what_it_costs_the_other_route(relative):
    """Rounding of F, some 1e-16 tr F, moves λ by as much: 1e-4 at 1e-12 tr F, and no more for either route."""
    rows = rows_of_ten_decades()
    by_parameters, by_samples = both(rows)
    trace = by_samples.eigenvalues.sum().item()
    ridge = relative * trace
    assert ridge >= resolved_ridge(trace) * (1 - 1e-9)
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = reference.influence_in_many_digits(rows[:N], unit[SCORED.query_rows], ridge)
    expected = torch.tensor(expected, dtype=torch.float64)
    for geometry in (by_parameters, by_samples):
        found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
        assert ((found - expected).abs() / expected).max() < 1e-16 / relative


def test_the_directions_diagonalise_f_and_coordinates_keep_every_inner_product():
    rows = normal(0, N + K, D)
    geometry, by_samples = both(rows)
    train = rows[:N]
    basis = basis_of_parameters(DenseGradients(rows), N)
    diagonal = basis.directions.T @ (train.T @ train / N) @ basis.directions
    torch.testing.assert_close(diagonal, basis.eigenvalues.diag(), rtol=0, atol=1e-13 * D)
    torch.testing.assert_close(geometry.vectors @ geometry.vectors.T, by_samples.vectors @ by_samples.vectors.T)
    torch.testing.assert_close(geometry.eigenvalues, by_samples.eigenvalues)
    assert torch.equal(geometry.norms, by_samples.norms)


def test_what_only_queries_have_lies_outside_the_range():
    rows = normal(0, N + K, D)
    rows[:N, 20:] = 0
    geometry, by_samples = both(rows)
    assert geometry.rank == by_samples.rank == 20
    assert geometry.eigenvalues[20:].tolist() == [0.0] * 4
    torch.testing.assert_close(geometry.outside_energy, by_samples.outside_energy, rtol=1e-10, atol=1e-13)


def test_entries_are_those_of_the_directions_by_either_route():
    """Up to the sign that each route has fixed in its own way."""
    rows = normal(0, N + K, D)
    gradients, chosen = DenseGradients(rows), torch.tensor([3, 11, 20])
    columns = gradients.unit[:, chosen]
    by_parameters = basis_of_parameters(gradients, N)
    by_samples = basis_of_samples(gradients.unit_gram(), gradients.norms, N)
    found, other = by_parameters.entries(columns, chosen), by_samples.entries(columns, chosen)
    assert torch.equal(found, by_parameters.directions[chosen])
    torch.testing.assert_close(found.abs(), other.abs(), rtol=1e-7, atol=1e-9)


def test_rounding_of_the_gradients_does_not_turn_the_directions():
    rows = normal(0, N + K, D)
    first, again = (
        basis_of_parameters(DenseGradients(r), N).directions for r in (rows, rows + 1e-15 * normal(1, N + K, D))
    )
    torch.testing.assert_close(first, again, rtol=0, atol=1e-9)


# --- a basis in the order of the rows -----------------------------------------------------------------------


def test_coordinates_of_independent_rows_give_the_gram_matrix_and_no_row_a_part_in_what_later_rows_bring():
    rows = normal(0, 90, 120)
    rows /= rows.norm(dim=1, keepdim=True)
    gram = rows @ rows.T
    found = bases.coordinates_as_they_stand(gram.tril())
    torch.testing.assert_close(found @ found.T, gram, rtol=0, atol=1e-13)
    assert found.triu(1).abs().max() == 0


@pytest.mark.parametrize(("rank", "repeated"), [(89, False), (12, False), (120, True)])
def test_dependent_rows_have_no_coordinates_in_their_order(rank, repeated):
    rows = normal(0, 90, rank) @ normal(1, rank, 200)
    if repeated:
        rows[80] = rows[3]
    rows /= rows.norm(dim=1, keepdim=True)
    assert bases.coordinates_as_they_stand(rows @ rows.T) is None
