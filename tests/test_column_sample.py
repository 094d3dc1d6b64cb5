"""Sampled columns seen from the eigenbasis of F, against a dense singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from common.column_sample import NUM_SAMPLED, sample_columns
from common.geometry import build_geometry
from common.gradients import StoredGradients
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
    return rows, stored, build_geometry(stored.unit_gram(), stored.norms, N, torch.arange(N, N + K))


@pytest.mark.parametrize("rank", [N, 7])
def test_energies_are_the_squared_entries_of_the_eigenvectors(rank):
    d = 60
    rows, stored, geometry = prepared(d, rank)
    sample = sample_columns(stored, geometry, seed=0)
    assert sample.num_columns == d
    assert sample.energies.shape == (d, geometry.rows.shape[1])
    eigenvectors = torch.linalg.svd(rows[:N], full_matrices=False).Vh[:rank]
    assert geometry.rank == rank
    # float32 storage rounds at 1e-7, which the spread of the eigenvalues amplifies
    torch.testing.assert_close(sample.energies[:, :rank], eigenvectors.square().T, rtol=0, atol=1e-5)
    span = torch.linalg.svd(rows, full_matrices=False).Vh[: rank + K]
    torch.testing.assert_close(sample.energies.sum(1), span.square().sum(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(sample.query_energies, geometry.queries.square().mean(0))


def test_of_many_columns_the_same_random_ones_are_read_for_one_seed():
    _, stored, geometry = prepared(3 * NUM_SAMPLED)
    first, again, other = (sample_columns(stored, geometry, seed).energies for seed in (1, 1, 2))
    assert len(first) == NUM_SAMPLED
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    # the mean over all columns is 1/d; 5 standard errors of a sample of a third allow one false alarm in a million
    spread = first.std(0) / NUM_SAMPLED**0.5
    assert ((first.mean(0) - 1 / (3 * NUM_SAMPLED)).abs() < 5 * spread).all()
