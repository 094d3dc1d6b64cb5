"""The law of a sketch against its definition and known limits."""

from __future__ import annotations

import pytest
import torch

from common.theory.sketch_law import corrected_ridge, sketch_law
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference_theory as reference

SIZE = 200
RIDGES = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)


@pytest.mark.parametrize("name", reference.SPECTRA)
def test_solving_with_the_corrected_ridge_acts_like_the_ridge_itself(name):
    eigenvalues = reference.spectrum(name, SIZE)
    m = torch.tensor([[16], [128], [1024]])
    corrected = corrected_ridge(ExactSpectrum(eigenvalues), m, RIDGES)
    defined = m > effective_dimension(ExactSpectrum(eigenvalues), RIDGES)
    assert torch.equal(corrected.isfinite(), defined)
    assert defined.any()
    assert not defined.all()
    wanted = RIDGES.expand_as(corrected)[defined]
    found = ExactSpectrum(eigenvalues).implicit_ridge(m.expand_as(corrected)[defined], corrected[defined])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_degrees_of_freedom_are_m_minus_the_second_dimension():
    eigenvalues = reference.spectrum("power", SIZE)
    for corrected in (False, True):
        law = sketch_law(ExactSpectrum(eigenvalues), torch.full((4,), 300.0), RIDGES, corrected)
        second = ((eigenvalues[:, None] / (eigenvalues[:, None] + law.mu)) ** 2).sum(0)
        torch.testing.assert_close(law.dof, 300 - second)


def test_finite_m_terms_reproduce_the_inverse_wishart_mean():
    """F = I on r = 60 directions, λ -> 0, m = 40: E tr A⁻¹/m = m/(r−m−1) outside the range, E[PᵀA⁻¹P] = m/r inside.

    Without the terms of order 1/ν the first is m/(r−m), 5 % lower.
    """
    eigenvalues = torch.cat([torch.ones(60), torch.zeros(5)]).double()
    law = sketch_law(ExactSpectrum(eigenvalues), torch.tensor([40.0]), torch.tensor([1e-10]))
    weights = law.mean_weights(ExactSpectrum(eigenvalues))[:, 0]
    assert weights[-1].item() == pytest.approx(40 / 19, rel=0.004)
    assert weights[0].item() == pytest.approx(40 / 60, rel=1e-8)
