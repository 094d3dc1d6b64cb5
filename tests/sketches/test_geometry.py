from __future__ import annotations

import pytest
import torch

from common.sketches.basis import basis_of_samples, coordinates
from common.sketches.geometry import ScoredVectors
from common.sketches.influence import exact_influence, exact_self_influence
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.geometries import geometry_from
from tests.reference import DenseGradients, normal

RIDGES = [1e-8, 1e-4, 1e-1, 1e2]


def geometry_of(train, queries=None):
    """Return the geometry of gradients in float64; without `queries`, the training rows are the queries."""
    matrix = train if queries is None else torch.cat([train, queries])
    rows = torch.arange(len(train)) if queries is None else torch.arange(len(train), len(matrix))
    gradients = DenseGradients(matrix)
    return geometry_from(gradients, len(train), rows)


def basis_for(train, queries=None):
    """Return the basis by inner products."""
    gradients = DenseGradients(train if queries is None else torch.cat([train, queries]))
    return basis_of_samples(gradients.unit_gram(), gradients.norms, len(train))


def spread_norms(matrix, smallest=1e-10, largest=10.0):
    exponents = torch.linspace(torch.tensor(smallest).log10(), torch.tensor(largest).log10(), len(matrix))
    return matrix / matrix.norm(dim=1, keepdim=True) * 10.0 ** exponents.double()[:, None]


def unit(matrix):
    return matrix / matrix.norm(dim=1, keepdim=True)


# --- coordinates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [7, 20, 45])
def test_coordinates_keep_every_inner_product(d):
    train, queries = normal(0, 20, d), normal(1, 9, d)
    basis = basis_for(train, queries)
    expected = unit(torch.cat([train, queries]))
    torch.testing.assert_close(basis.rows @ basis.rows.T, expected @ expected.T, rtol=0, atol=1e-13)
    assert basis.rank == min(d, 20)


def test_only_directions_outside_the_range_are_added_for_queries():
    train = normal(0, 20, 45)
    assert basis_for(train, normal(1, 9, 45)).rows.shape[1] == 29
    assert basis_for(train, normal(1, 9, 20) @ train).rows.shape[1] == 20


@pytest.mark.parametrize("d", [7, 45])
def test_the_basis_diagonalises_the_fisher_matrix(d):
    train = normal(0, 20, d)
    basis = basis_for(train, normal(1, 9, d))
    G = basis.rows[:20] * basis.norms[:20, None]
    torch.testing.assert_close(G.T @ G / 20, basis.eigenvalues.diag(), rtol=0, atol=1e-13 * d)


def test_eigenvalues_are_those_of_gtg_over_n_descending_and_zero_outside():
    spectrum = torch.logspace(1, -6, 12, dtype=torch.float64)
    train = reference.gradients_with_spectrum(spectrum, 30, 50, seed=3)
    geometry = geometry_of(train, normal(5, 4, 50))
    assert geometry.rank == 12
    torch.testing.assert_close(geometry.eigenvalues[:12], spectrum, rtol=1e-8, atol=0)
    assert geometry.eigenvalues[12:].tolist() == [0.0] * 4


def test_everything_is_float64_and_norms_are_kept_beside_unit_rows():
    train = spread_norms(normal(0, 6, 10))
    geometry = geometry_of(train)
    tensors = (geometry.eigenvalues, geometry.vectors, geometry.norms, geometry.queries, geometry.outside_energy)
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    torch.testing.assert_close(geometry.norms, train.norm(dim=1))
    torch.testing.assert_close(geometry.vectors.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_coordinates_of_a_rank_deficient_gram_matrix_have_as_many_columns_as_its_rank():
    matrix = normal(0, 15, 4) @ normal(1, 4, 30)
    gram = matrix @ matrix.T / matrix.square().sum(1).max()
    order, rows = coordinates(gram)
    assert rows.shape == (15, 4)
    torch.testing.assert_close(rows @ rows.T, gram, rtol=0, atol=1e-14)
    assert sorted(order.tolist()) == list(range(15))
    assert rows[order].triu(1).abs().max() == 0


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_the_gram_matrix_does_not_turn_the_basis(seed):
    # a sketch of the coordinates is equal in law in every basis, but its numbers are not: were the signs of the
    # eigenvectors left to rounding, the number of threads would change every score of a seed
    train = reference.gradients_with_spectrum(torch.logspace(1, -3, 30, dtype=torch.float64), 30, 60, seed)
    gradients = DenseGradients(train)
    noise = 1e-14 * normal(seed + 9, 30, 30)
    rows = [
        basis_of_samples(gram, gradients.norms, 30).rows
        for gram in (gradients.unit_gram(), gradients.unit_gram() + noise + noise.T)
    ]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-6)


# --- accuracy over ten orders of magnitude ------------------------------------------------------------------


@pytest.mark.parametrize("d", [24, 60], ids=["d_below_n", "d_above_n"])
@pytest.mark.parametrize("ridge", RIDGES)
def test_gradient_norms_over_ten_orders_of_magnitude_cost_no_accuracy(d, ridge):
    # rounding of F is 1e-16 of its largest eigenvalue (about 3 here) and disturbs λ by that much
    train = spread_norms(normal(0, 30, d))
    geometry = geometry_of(train)
    found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
    expected = torch.tensor(reference.influence_in_many_digits(train, unit(train), ridge), dtype=torch.float64)
    assert ((found - expected).abs() / expected).max() < 1e-6


@pytest.mark.parametrize("ridge", RIDGES)
def test_short_gradients_in_the_shadow_of_long_ones_keep_their_accuracy(ridge):
    # short gradients are the long ones plus a small part of their own: what a common Gram matrix would lose
    long = normal(0, 10, 40)
    short = 1e-10 * (long + 1e-3 * normal(1, 10, 40))
    train = torch.cat([10 * long, short])
    geometry = geometry_of(train)
    found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
    expected = torch.tensor(reference.influence_in_many_digits(train, unit(train), ridge), dtype=torch.float64)
    assert geometry.rank == 20
    assert ((found - expected).abs() / expected).max() < 1e-6


@pytest.mark.parametrize("angle", [1e-5, 1e-6, 3e-7, 1e-7, 1e-8])
@pytest.mark.parametrize("ridge", [1e-8, 1e-6])
def test_nearly_parallel_gradients_cost_no_more_than_the_rank_tolerance(angle, ridge):
    # of a pair at this angle, angle²/4 lies in a direction that only 1/λ sees; below the tolerance it is left out
    train = normal(0, 12, 40)
    twin = train[:1] + angle * train[:1].norm() * unit(normal(1, 1, 40))
    train = torch.cat([train, twin])
    geometry = geometry_of(train)
    found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
    expected = torch.tensor(reference.influence_in_many_digits(train, unit(train), ridge), dtype=torch.float64)
    assert ((found - expected).abs() <= 1e-13 / ridge + 1e-7 * expected).all()


def test_scores_do_not_depend_on_the_length_of_a_query_that_is_no_training_row():
    train, queries = normal(0, 15, 25), normal(1, 5, 25)
    lengths = torch.logspace(-12, 3, 5, dtype=torch.float64)[:, None]
    short, plain = geometry_of(train, queries * lengths), geometry_of(train, queries)
    for ridge in RIDGES:
        torch.testing.assert_close(
            exact_self_influence(short.eigenvalues, short.queries, ridge),
            exact_self_influence(plain.eigenvalues, plain.queries, ridge),
            rtol=1e-9,
            atol=0,
        )


# --- degenerate rows ----------------------------------------------------------------------------------------


def degenerate_training_rows():
    base = normal(0, 8, 30)
    return torch.cat([base, 1e-9 * base[:3], base[2:4], -2 * base[4:5], base[5:7].sum(0, keepdim=True), base[:0]])


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_duplicated_and_dependent_rows_give_the_dense_scores(ridge):
    train = degenerate_training_rows()
    geometry = geometry_of(train)
    assert geometry.rank == 8
    found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
    expected = reference.influence(train, unit(train), unit(train), ridge).diagonal()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_zero_rows_stay_zero_and_change_nothing_but_n():
    train = normal(0, 8, 30)
    padded = torch.cat([train[:3], torch.zeros(2, 30, dtype=torch.float64), train[3:]])
    geometry, plain = geometry_of(padded), geometry_of(train)
    assert geometry.queries[3:5].abs().max() == 0
    assert geometry.norms[3:5].tolist() == [0, 0]
    torch.testing.assert_close(geometry.eigenvalues, plain.eigenvalues * 8 / 10)
    kept = [0, 1, 2, 5, 6, 7, 8, 9]
    for ridge in (1e-6, 1.0):
        found = exact_self_influence(geometry.eigenvalues, geometry.queries, ridge)
        expected = reference.influence(padded, unit(train), unit(train), ridge).diagonal()
        torch.testing.assert_close(found[kept], expected, rtol=1e-8, atol=0)
        assert found[3:5].tolist() == [0, 0]


def test_a_zero_query_outside_the_training_set_has_no_coordinates():
    queries = torch.cat([normal(1, 2, 30), torch.zeros(1, 30, dtype=torch.float64)])
    geometry = geometry_of(normal(0, 8, 30), queries)
    assert geometry.queries[2].abs().max() == 0
    assert geometry.outside_energy[2] == 0


# --- queries outside range(F) -------------------------------------------------------------------------------


def test_energy_outside_the_range_is_the_squared_distance_to_the_span_of_the_training_gradients():
    train, queries = normal(0, 10, 40), normal(1, 6, 40)
    basis = torch.linalg.qr(train.T).Q
    outside = unit(queries) - unit(queries) @ basis @ basis.T
    torch.testing.assert_close(geometry_of(train, queries).outside_energy, outside.square().sum(1))


def test_queries_inside_the_range_have_no_energy_outside():
    train = normal(0, 10, 40)
    inside = normal(1, 6, 10) @ train
    geometry = geometry_of(train, torch.cat([inside, train[:2]]))
    assert geometry.outside_energy.max() < 1e-13
    assert geometry_of(train).outside_energy.tolist() == [0.0] * 10


@pytest.mark.parametrize("d", [12, 60])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_scores_of_outside_queries_equal_the_dense_ones(d, ridge):
    train, queries = normal(0, 20, d), normal(1, 7, d)
    queries[3] = queries[2] * 5  # two queries may share an outside direction
    queries[4] = train[1]
    geometry = geometry_of(train, queries)
    expected = reference.influence(train, unit(queries), unit(queries), ridge)
    scale = expected.diagonal().sqrt()
    found = exact_influence(geometry.eigenvalues, geometry.queries, geometry.queries, ridge)
    assert ((found - expected).abs() / scale / scale[:, None]).max() < 1e-8


# --- weights ------------------------------------------------------------------------------------------------


def test_query_weights_pick_the_unit_queries():
    basis = basis_for(normal(0, 10, 40), normal(1, 6, 40))
    geometry = basis.geometry(ScoredVectors(torch.tensor([11, 3])))
    assert torch.equal(geometry.scored.weights(geometry.norms) @ basis.rows, geometry.queries)
    assert len(geometry.subset_sums) == 0


def test_subset_weights_add_up_the_actual_gradients():
    train, queries = spread_norms(normal(0, 10, 40), smallest=1e-3), normal(1, 6, 40)
    scored = ScoredVectors(torch.arange(10, 16), torch.tensor([[0, 4, 9], [1, 2, 3]]))
    geometry = basis_for(train, queries).geometry(scored)
    sums = torch.stack([train[subset].sum(0) for subset in scored.subsets])
    unit_rows = DenseGradients(torch.cat([train, queries])).unit
    torch.testing.assert_close(scored.weights(geometry.norms) @ unit_rows, torch.cat([sums, unit(queries)]))
    found = exact_influence(geometry.eigenvalues, geometry.subset_sums, geometry.queries, 0.1)
    torch.testing.assert_close(found, reference.influence(train, sums, unit(queries), 0.1))


# --- effective dimension ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 1e4])
def test_effective_dimension_equals_the_dense_trace(ridge):
    train = normal(0, 20, 12)
    expected = reference.effective_dimension(train, ridge)
    assert effective_dimension(ExactSpectrum(geometry_of(train).eigenvalues), ridge).item() == pytest.approx(
        expected, rel=1e-10
    )


def test_effective_dimension_lies_between_zero_and_the_rank_and_falls_with_the_ridge():
    eigenvalues = geometry_of(normal(0, 20, 12)).eigenvalues
    ridges = torch.logspace(-300, 300, 121, dtype=torch.float64)
    d_lambda = effective_dimension(ExactSpectrum(eigenvalues), ridges)
    assert d_lambda.shape == (121,)
    assert d_lambda[0] == 12
    assert (d_lambda.diff() <= 0).all()
    assert 0 <= d_lambda[-1] < 1e-290


def test_directions_that_only_queries_have_do_not_count_even_without_a_ridge():
    assert effective_dimension(ExactSpectrum(torch.tensor([2.0, 1.0, 0.0, 0.0])), 0.0).item() == 2
