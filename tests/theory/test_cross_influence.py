"""The error of cross scores against dense simulation with prescribed spectra."""

from __future__ import annotations

import pytest
import torch

from common.theory.cross_influence import predict_cross_error
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum
from tests import reference_theory as reference

SIZE = 200
RIDGES = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_the_cross_error_of_a_query_with_itself_is_its_self_influence_error(generator):
    eigenvalues = reference.spectrum("power", SIZE)
    queries = reference.unit_queries(eigenvalues, 50, generator)
    cross = predict_cross_error(ExactSpectrum(eigenvalues), queries, queries, [4096], RIDGES)
    own = predict_self_influence(ExactSpectrum(eigenvalues), queries, [4096], RIDGES)
    for name in ("eps_mean", "eps_50", "eps_95"):
        torch.testing.assert_close(getattr(cross, name), getattr(own, name), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_normalised_error_of_cross_scores_is_predicted(kind, generator):
    """ε_95 over 40 x 40 pairs, 100 sketches, 4 ridges: 5 % plus 5 standard errors (false alarm below 1e-5)."""
    eigenvalues = reference.spectrum("power", SIZE)
    left, right = reference.unit_queries(eigenvalues, 80, generator).split(40)
    basis = reference.random_basis(SIZE, generator)
    exact = reference.exact_scores(eigenvalues, left, right, RIDGES)
    scale = torch.stack(
        [
            (left.square() @ (1 / (eigenvalues + ridge))).sqrt()[:, None]
            * (right.square() @ (1 / (eigenvalues + ridge))).sqrt()
            for ridge in RIDGES
        ]
    )
    scores = reference.simulated_scores(eigenvalues, left, right, 64, RIDGES, 100, generator, kind, basis)
    errors = torch.stack([torch.quantile(((s - exact) / scale).abs().flatten(1), 0.95, dim=1) for s in scores])
    predicted = predict_cross_error(
        ExactSpectrum(eigenvalues), left.repeat_interleave(40, 0), right.repeat(40, 1), [64], RIDGES
    ).eps_95[0]
    gap = (predicted - errors.mean(0)).abs()
    assert (gap <= 0.05 * predicted + 5 * errors.std(0) / 10).all(), predicted / errors.mean(0) - 1
