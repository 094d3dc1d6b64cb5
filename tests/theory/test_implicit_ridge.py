"""The implicit ridge against high-precision roots and known limits."""

from __future__ import annotations

import math

import pytest
import torch

from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference_theory as reference

SIZE = 200
RIDGES = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)


@pytest.mark.parametrize("name", [*reference.SPECTRA, "gap"])
def test_implicit_ridge_agrees_with_sixty_digits(name):
    rank_gap = torch.tensor([1.0] * 20 + [1e-13] * 20, dtype=torch.float64)
    eigenvalues = rank_gap if name == "gap" else reference.spectrum(name, 40)
    for m in (1, 19, 20, 21, 39, 40, 41, 10**7):
        for ridge in (0.0, 1e-12, 1e-6, 1.0, 1e6):
            expected = float(reference.implicit_ridge_mp(eigenvalues.tolist(), m, ridge))
            found = ExactSpectrum(eigenvalues).implicit_ridge(m, ridge).item()
            assert found == pytest.approx(expected, rel=1e-12, abs=0), (m, ridge)


def test_implicit_ridge_of_a_flat_spectrum_is_the_root_of_a_quadratic():
    c, rank = 3.0, 50
    m = torch.tensor([1.0, 25, 50, 51, 1e7])[:, None].double()
    ridge = torch.tensor([1e-12, 1e-3, 1.0, 1e6]).double()
    half = (c - ridge - rank * c / m) / 2
    discriminant = (half**2 + ridge * c).sqrt()
    # the form of the positive root that does not cancel
    expected = torch.where(half > 0, ridge * c / (half + discriminant), discriminant - half)
    found = ExactSpectrum(torch.full((rank,), c)).implicit_ridge(m, ridge)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_implicit_ridge_tends_to_the_ridge_for_large_m_and_to_the_trace_for_large_ridge():
    eigenvalues = reference.spectrum("power", SIZE)
    assert ExactSpectrum(eigenvalues).implicit_ridge(1e12, 0.1).item() == pytest.approx(0.1, rel=1e-9)
    large = ExactSpectrum(eigenvalues).implicit_ridge(10, 1e6).item()
    assert large - 1e6 == pytest.approx(eigenvalues.sum().item() / 10, rel=1e-5)


@pytest.mark.parametrize("name", reference.SPECTRA)
def test_without_a_ridge_the_effective_dimension_equals_m_below_the_rank(name):
    eigenvalues = reference.spectrum(name, SIZE)
    rank = int((eigenvalues > 0).sum())
    below = torch.tensor([1, rank // 2, rank - 1]).double()
    torch.testing.assert_close(
        effective_dimension(ExactSpectrum(eigenvalues), ExactSpectrum(eigenvalues).implicit_ridge(below, 0)), below
    )
    assert (ExactSpectrum(eigenvalues).implicit_ridge([rank, rank + 1], 0) == 0).all()


def test_implicit_ridge_broadcasts_and_ignores_order_and_zero_eigenvalues():
    eigenvalues = reference.spectrum("deficient", 30)
    m, ridge = torch.tensor([[5], [50]]), torch.tensor([1e-3, 0.0, 1.0])
    found = ExactSpectrum(eigenvalues).implicit_ridge(m, ridge)
    assert found.shape == (2, 3)
    torch.testing.assert_close(
        ExactSpectrum(eigenvalues[:15].flip(0)).implicit_ridge(m, ridge), found, rtol=1e-13, atol=0
    )
    torch.testing.assert_close(ExactSpectrum(torch.zeros(4)).implicit_ridge(3, 0.5).item(), 0.5)


@pytest.mark.parametrize(
    ("eigenvalues", "m", "ridge", "message"),
    [
        ([1.0], 0, 1.0, "projection dimension m must be finite and > 0, got 0"),
        ([1.0], math.inf, 1.0, "projection dimension m must be finite"),
        ([1.0], 1, -2.0, "ridge must be finite and >= 0, got -2"),
        ([1.0], 1, math.nan, "ridge must be finite"),
        ([1.0, -1.0], 1, 1.0, "eigenvalues must be"),
        ([[1.0]], 1, 1.0, "eigenvalues must be"),
    ],
)
def test_input_that_no_sketch_could_have_is_refused(eigenvalues, m, ridge, message):
    with pytest.raises(ValueError, match=message):
        ExactSpectrum(eigenvalues).implicit_ridge(m, ridge)
