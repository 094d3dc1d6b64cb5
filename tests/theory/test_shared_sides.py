from __future__ import annotations

import pytest
import torch

from common.theory.column_sample import ColumnSample
from common.theory.shared_sides import SharedSides
from common.theory.sketch_law import sketch_law
from common.theory.spectrum import ExactSpectrum

SPECTRUM = ExactSpectrum(torch.logspace(0, -4, 40, dtype=torch.float64))
M, RIDGE = torch.tensor([60.0, 200.0]), torch.tensor([1e-2, 1e-1])


def columns(sides, num_columns=10**6):
    spread = torch.full((8, 40), 1e-6, dtype=torch.float64)
    return ColumnSample(num_columns, SPECTRUM.eigenvalues, spread, spread, sides)


def constant(length, leverage, residuals):
    ridges = torch.tensor([1e-6, 1e2], dtype=torch.float64)
    return SharedSides(length, ridges, torch.full((2,), leverage).double(), torch.full((2,), residuals).double())


def test_without_shared_sides_the_law_is_that_of_an_sjlt():
    plain, shared = (sketch_law(SPECTRUM, M, RIDGE, False, columns(s)) for s in (None, constant(256, 0.0, 0.0)))
    torch.testing.assert_close(shared.mu, plain.mu)
    torch.testing.assert_close(shared.dof, plain.dof)


def test_a_transform_much_longer_than_m_leaves_nothing_apart():
    plain, shared = (sketch_law(SPECTRUM, M, RIDGE, False, columns(s)) for s in (None, constant(2**40, 0.5, 0.5)))
    torch.testing.assert_close(shared.dof, plain.dof)


def test_pairs_kept_apart_make_bias_and_noise_those_of_a_larger_sketch():
    sides = constant(200, 0.2, 0.5)
    bias, noise = sides.sizes(M.double(), RIDGE.double())
    torch.testing.assert_close(bias, M.double() / (1 - 0.2 * M / 200))
    torch.testing.assert_close(noise, M.double() / (1 - 0.5 * M / 200))
    law = sketch_law(SPECTRUM, M, RIDGE, False, columns(sides))
    torch.testing.assert_close(law.mu, sketch_law(SPECTRUM, bias, RIDGE).mu)
    torch.testing.assert_close(law.dof, sketch_law(SPECTRUM, noise, RIDGE).dof)


def test_a_larger_m_than_the_transform_is_long_has_a_transform_of_its_own():
    bias, _ = constant(64, 0.25, 0.5).sizes(torch.tensor([1000.0]).double(), torch.tensor([1e-2]).double())
    assert bias.item() == pytest.approx(1000 / 0.75)


def test_cells_without_a_corrected_ridge_stay_without():
    law = sketch_law(
        SPECTRUM, torch.tensor([2.0, 200.0]), torch.tensor([1e-3, 1e-1]), True, columns(constant(256, 0.1, 0.3))
    )
    assert law.mu.isnan().tolist() == [True, False]


def test_shares_are_interpolated_in_the_logarithm_of_the_ridge():
    sides = SharedSides(100, torch.tensor([1e-4, 1.0]).double(), *(torch.tensor([0.2, 0.4]).double() for _ in range(2)))
    bias, _ = sides.sizes(torch.tensor([50.0]).double(), torch.tensor([1e-2]).double())
    assert bias.item() == pytest.approx(50 / (1 - 0.3 / 2))
