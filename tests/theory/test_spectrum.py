"""Functions of μ against traces and forms of dense matrices."""

from __future__ import annotations

import pytest
import torch

from common.theory.binned_spectrum import binned
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference_theory as reference

MUS = torch.tensor([1e-5, 1e-2, 3.0], dtype=torch.float64)


@pytest.fixture
def problem():
    """Return eigenvalues, a dense F with random eigenvectors, and vectors in its eigenbasis and in its own space."""
    generator = torch.Generator().manual_seed(11)
    eigenvalues = reference.spectrum("deficient", 40)
    basis = reference.random_basis(40, generator)
    vectors = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    return eigenvalues, basis * eigenvalues @ basis.T, vectors, vectors @ basis.T


def resolvent(fisher, mu):
    return torch.linalg.inv(fisher + mu * torch.eye(len(fisher), dtype=torch.float64))


def test_spectral_sums_are_traces_of_powers(problem):
    eigenvalues, fisher, *_ = problem
    sums = ExactSpectrum(eigenvalues).sums(MUS)
    shares = [fisher @ resolvent(fisher, mu) for mu in MUS]
    first, second, third = (
        torch.stack([torch.linalg.matrix_power(share, power).trace() for share in shares]) for power in (1, 2, 3)
    )
    torch.testing.assert_close(sums.first, first, rtol=1e-10, atol=0)
    torch.testing.assert_close(sums.first_minus_second, first - second, rtol=1e-8, atol=0)
    torch.testing.assert_close(sums.second_minus_third, second - third, rtol=1e-8, atol=0)
    assert torch.equal(effective_dimension(ExactSpectrum(eigenvalues), MUS), sums.first)


def test_differences_of_dimensions_do_not_cancel():
    """All eigenvalues far above μ: d_1 and d_2 agree to 14 digits, their difference is r μ/s to first order."""
    sums = ExactSpectrum(torch.full((50,), 2.0)).sums(torch.tensor(1e-13, dtype=torch.float64))
    assert sums.first_minus_second.item() == pytest.approx(50 * 1e-13 / 2, rel=1e-12)
    assert sums.second_minus_third.item() == pytest.approx(50 * 1e-13 / 2, rel=1e-12)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_resolvent_weights_give_the_forms_of_the_dense_matrix(problem, power):
    eigenvalues, fisher, vectors, dense = problem
    weights = ExactSpectrum(eigenvalues).resolvent_weights(power, MUS)
    assert weights.shape == (40, 3)
    for cell, mu in enumerate(MUS):
        expected = dense @ torch.linalg.matrix_power(resolvent(fisher, mu), power) @ dense.T
        torch.testing.assert_close((vectors * weights[:, cell]) @ vectors.T, expected, rtol=1e-8, atol=1e-8)


def test_an_effective_dimension_without_ridge_counts_positive_eigenvalues():
    assert effective_dimension(ExactSpectrum(torch.tensor([2.0, 1.0, 0.0])), 0.0).item() == 2


@pytest.mark.parametrize("make", [ExactSpectrum, binned])
def test_a_known_spectrum_resolves_every_ridge_and_is_solved_with_it(make):
    spectrum = make(torch.tensor([2.0, 1.0, 1e-30]))
    assert (spectrum.size, spectrum.smallest_ridge) == (None, 0)
    assert torch.equal(spectrum.solve_of_ridge(MUS), MUS)
