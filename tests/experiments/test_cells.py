from __future__ import annotations

import math

import pytest
import torch

from common.experiments.cells import Cells
from common.theory.sketched_spectrum import SketchedSpectrum
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.geometries import geometry_from
from tests.reference import DenseGradients

RIDGES = [1e-4, 1e-2, 1.0]


@pytest.fixture(scope="module")
def geometry():
    train = reference.gradients_with_spectrum(torch.logspace(1, -4, 40, dtype=torch.float64), 40, 120, seed=1)
    gradients = DenseGradients(train)
    return geometry_from(gradients, 40, torch.arange(8))


def make_cells(geometry, ms, ridge_correction):
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(RIDGES, dtype=torch.float64)).tolist()
    return Cells(spectrum, ms, RIDGES, d_lambda, ridge_correction)


@pytest.mark.parametrize("m", [1, 64])
def test_the_corrected_ridge_is_lambda_times_one_minus_d_lambda_over_m_and_undefined_below(geometry, m):
    cells = make_cells(geometry, [m], ridge_correction=True)
    for ridge, d_lambda, found in zip(RIDGES, cells.effective_dimensions, cells.corrected(m), strict=True):
        expected = ridge * (1 - d_lambda / m)
        assert math.isnan(found) if expected <= 0 else found == pytest.approx(expected)


def test_the_smallest_ridge_includes_corrected_ones(geometry):
    d_lambda = make_cells(geometry, [64], ridge_correction=False).effective_dimensions[0]
    just_above = math.ceil(d_lambda)
    corrected = make_cells(geometry, [1, just_above, 64], ridge_correction=True)
    assert corrected.smallest_ridge() == pytest.approx(1e-4 * (1 - d_lambda / just_above))
    assert make_cells(geometry, [just_above], ridge_correction=False).smallest_ridge() == 1e-4


def test_without_a_defined_correction_the_smallest_ridge_is_that_of_the_grid(geometry):
    assert make_cells(geometry, [1], ridge_correction=True).smallest_ridge() == 1e-4


def test_f_itself_is_solved_with_the_ridges_and_a_reference_sketch_with_those_that_act_like_them(geometry):
    assert make_cells(geometry, [4], ridge_correction=False).reference_solves() == RIDGES
    seen = SketchedSpectrum(torch.logspace(1, -1, 50, dtype=torch.float64))
    ridges = [seen.smallest_ridge / 2, 1.0, 5.0]
    unresolved, *solves = Cells(seen, [4], ridges, [1.0] * 3, False).reference_solves()
    assert math.isnan(unresolved)
    d_lambda = effective_dimension(seen, torch.tensor(ridges[1:], dtype=torch.float64)).tolist()
    assert solves == pytest.approx([ridge * (1 - d / 50) for ridge, d in zip(ridges[1:], d_lambda, strict=True)])
