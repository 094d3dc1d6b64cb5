"""Sampled columns seen from the eigenbasis of F, against a dense singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from common.experiments.preparing.column_sample import NUM_SAMPLED, sample_columns
from common.gradients.kept_rows import StoredGradients
from common.sketches.basis import build_basis
from common.sketches.geometry import ScoredVectors
from tests.reference import generator

N, K = 12, 5


def prepared(d: int, rank: int = N):
    """Return (N + K, d) float64 rows of which the first N span `rank` directions, their storage and geometry."""
    stream = generator(d)
    rows = torch.randn(N + K, d, generator=stream, dtype=torch.float64)
    rows[:N] = torch.randn(N, rank, generator=stream, dtype=torch.float64) @ rows[:rank]
    rows[:, : d // 2] *= 0.01  # so that columns differ
    stored = StoredGradients(N + K, d, "cpu", torch.float32, torch.device("cpu"))
    stored.write(0, rows)
    basis = build_basis(stored, N)
    return rows, stored, basis, basis.geometry(ScoredVectors(torch.arange(N, N + K)), lambda: stored)


@pytest.mark.parametrize("rank", [N, 7])
def test_energies_are_the_squared_entries_of_the_eigenvectors(rank):
    d = 60
    rows, stored, basis, geometry = prepared(d, rank)
    sample = sample_columns(stored, basis, geometry.queries, seed=0)
    assert sample.num_columns == d
    _, values, eigenvectors = torch.linalg.svd(rows[:N], full_matrices=False)
    assert geometry.rank == rank
    assert sample.eigenvalues[0] == 0  # the directions that only queries have
    # float32 storage rounds at 1e-7, which the spread of the eigenvalues amplifies
    for ridge in (0.01, 1.0, 100.0):
        weights = 1 / (values[:rank].square() / N + ridge)
        found = sample.energies[:, 1:] @ (1 / (sample.eigenvalues[1:] + ridge))
        torch.testing.assert_close(found, eigenvectors[:rank].square().T @ weights, rtol=0.02, atol=1e-5 / ridge)
    span = torch.linalg.svd(rows, full_matrices=False).Vh[: rank + K]
    torch.testing.assert_close(sample.energies.sum(1), span.square().sum(0), rtol=0, atol=1e-5)
    assert sample.query_energies.shape == sample.energies.shape


def test_of_many_columns_the_same_random_ones_are_read_for_one_seed():
    _, stored, basis, geometry = prepared(3 * NUM_SAMPLED)
    first, again, other = (sample_columns(stored, basis, geometry.queries, seed).energies for seed in (1, 1, 2))
    assert len(first) == NUM_SAMPLED
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    # all columns of an eigenvector together have energy 1: the mean is the number of directions over d. 5 standard
    # errors allow one false alarm in a million
    total = first.sum(1)
    expected = geometry.vectors.shape[1] / (3 * NUM_SAMPLED)
    assert (total.mean() - expected).abs() < 5 * total.std() / NUM_SAMPLED**0.5
