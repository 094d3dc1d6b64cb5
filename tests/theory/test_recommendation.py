from __future__ import annotations

import pytest
import torch

from common.theory.recommendation import smallest_dimensions
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum
from tests import reference_theory as reference

RIDGES, TARGET = [1e-3, 1e-1, 10.0], 0.2


@pytest.mark.parametrize("corrected", [False, True])
def test_the_smallest_dimension_reaches_the_target_and_one_a_little_smaller_does_not(corrected):
    spectrum = ExactSpectrum(reference.spectrum("power", 150))
    queries = reference.unit_queries(spectrum.eigenvalues, 40, torch.Generator().manual_seed(2))
    found = smallest_dimensions(spectrum, queries, RIDGES, TARGET, 10**6, corrected)
    for ridge, m in zip(RIDGES, found, strict=True):
        below = int(0.99 * m)
        errors = predict_self_influence(spectrum, queries, [below, m], [ridge], corrected).eps_95.flatten()
        assert errors[1] <= TARGET
        assert not errors[0] <= TARGET  # NaN where no correction exists


def test_what_the_largest_dimension_does_not_reach_is_none():
    spectrum = ExactSpectrum(reference.spectrum("flat", 100))
    assert smallest_dimensions(spectrum, torch.eye(100), [1e9], 0.1, largest=300) == [None]
    assert smallest_dimensions(spectrum, torch.eye(100), [1e9], 0.5, largest=300)[0] < 300
