from __future__ import annotations

import pytest
import torch

from common.curvature import scores
from tests.curvature.references import bilinear, dense_curvature, factored_block, positive

RIDGES = torch.tensor([1e-6, 1e-3, 1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    a, e = positive(7, 5, 0), positive(4, 4, 1)
    gradients = torch.randn(6, 4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    factored = factored_block(a, e)
    return dense_curvature(a, e), factored, gradients, factored.e.basis.T @ gradients @ factored.a.basis


@pytest.mark.parametrize("chunk_bytes", [scores.CHUNK_BYTES, 100])
def test_scores_are_those_of_the_dense_kronecker_matrix(problem, chunk_bytes, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_BYTES", chunk_bytes)
    dense, factored, gradients, coordinates = problem
    cross = scores.cross_influence(factored.eigenvalues, coordinates[:2], coordinates[2:], RIDGES)
    own = scores.self_influence(factored.eigenvalues, coordinates, RIDGES)
    for i, ridge in enumerate(RIDGES.tolist()):
        expected = bilinear(dense, gradients, gradients, ridge)
        torch.testing.assert_close(cross[i], expected[:2, 2:], rtol=1e-8, atol=1e-8 * expected.abs().max().item())
        torch.testing.assert_close(own[i], expected.diagonal(), rtol=1e-8, atol=0)


def test_coordinates_kept_in_float32_change_no_score_by_more_than_their_rounding(problem):
    _, factored, _, coordinates = problem
    exact, rounded = (
        scores.self_influence(factored.eigenvalues, values, RIDGES) for values in (coordinates, coordinates.float())
    )
    torch.testing.assert_close(rounded, exact, rtol=2 * torch.finfo(torch.float32).eps, atol=0)


def test_the_unit_of_relative_ridges_is_the_mean_of_all_eigenvalues(problem):
    dense, factored, _, _ = problem
    assert scores.mean_eigenvalue(factored.eigenvalues) == pytest.approx(dense.trace().item() / len(dense), rel=1e-12)
