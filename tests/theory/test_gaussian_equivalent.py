from __future__ import annotations

import numpy as np
import torch

from common.theory.gaussian_equivalent import gaussian_equivalent_dimensions
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum

SPECTRUM = ExactSpectrum(torch.logspace(0, -6, 60, dtype=torch.float64))
QUERIES = torch.randn(20, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MS, RIDGES = [10, 50, 300], [1e-3, 1e-1]
CELLS = [(m, ridge) for m in MS for ridge in RIDGES]


def equivalent(eps_95):
    return gaussian_equivalent_dimensions(SPECTRUM, QUERIES, [m for m, _ in CELLS], [r for _, r in CELLS], eps_95)


def test_a_gaussian_sketch_is_its_own_equivalent():
    eps_95 = predict_self_influence(SPECTRUM, QUERIES, MS, RIDGES).eps_95.flatten().numpy()
    np.testing.assert_allclose(equivalent(eps_95), [m for m, _ in CELLS], rtol=0.01)


def test_a_larger_error_is_that_of_a_smaller_sketch():
    eps_95 = predict_self_influence(SPECTRUM, QUERIES, MS, RIDGES).eps_95.flatten().numpy()
    smaller, known = equivalent(eps_95 * 1.1), equivalent(eps_95)
    assert np.isnan(smaller[0])  # ε_95 of 1.09, which no m has
    assert (smaller[1:] < 0.9 * known[1:]).all()


def test_errors_that_no_gaussian_sketch_has_have_no_equivalent():
    assert np.isnan(equivalent(np.array([np.nan, np.inf, 1e-6, 0.0, 1e9, np.nan]))).all()
