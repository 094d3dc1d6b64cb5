from __future__ import annotations

import pytest
import torch

from common.sketches import matrices
from common.sketches.matrices import DenseMatrix, SparseMatrix

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 2**10)
    monkeypatch.setattr(matrices, "SPARSE_TILE_WIDTH", 64)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_a_dense_tile_is_the_same_whenever_it_is_drawn_and_tiles_differ(kind):
    matrix = DenseMatrix(kind, 32, seed=4)
    first, second = matrix.tile(0, CPU), matrix.tile(1, CPU)
    assert first.shape == (32, 32)
    assert torch.equal(matrix.tile(0, CPU), first)
    assert not torch.equal(first, second)
    assert not torch.equal(DenseMatrix(kind, 32, seed=4, trial=1).tile(0, CPU), first)


@pytest.mark.parametrize("sparsity", [1, 4])
def test_a_sparse_column_does_not_depend_on_how_many_columns_there_are(sparsity):
    matrix = SparseMatrix(16, sparsity, seed=4)
    rows, signs = matrix.columns(200)
    assert rows.shape == signs.shape == (200, sparsity)
    for count in (1, 64, 130):
        assert torch.equal(matrix.columns(count)[0], rows[:count])
        assert torch.equal(matrix.columns(count)[1], signs[:count])


def test_a_sparse_matrix_of_half_the_rows_is_the_larger_one_folded():
    large, small = SparseMatrix(64, 2, seed=1).columns(100), SparseMatrix(32, 2, seed=1).columns(100)
    assert torch.equal(large[0] % 16, small[0] % 16)
    assert torch.equal(large[1], small[1])
