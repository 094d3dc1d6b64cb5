from __future__ import annotations

import pytest
import torch

from common.sketches import matrices, row_projection
from common.sketches.matrices import DenseMatrix, SparseMatrix
from common.sketches.projectors import make_projector
from common.sketches.row_projection import SparseRowProjection, make_row_projection
from tests.reference import normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
KINDS = ["normal", "rademacher", "sjlt"]
D = 300


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Matrices of test size then span several tiles."""
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 2**10)
    monkeypatch.setattr(matrices, "SPARSE_TILE_WIDTH", 64)


def column_by_column(kind: str, m: int, seed: int, d: int, sparsity: int = 1) -> torch.Tensor:
    """Return P, float64, filled column by column from the drawn tiles."""
    P = torch.zeros(m, d, dtype=torch.float64)
    for j in range(d):
        if kind == "sjlt":
            matrix = SparseMatrix(m, sparsity, seed)
            rows, signs = matrix.tile(j // matrix.tile_width)
            for row, sign in zip(rows[j % matrix.tile_width], signs[j % matrix.tile_width], strict=True):
                P[row, j] = int(sign) / sparsity**0.5
        else:
            dense = DenseMatrix(kind, m, seed)
            P[:, j] = dense.tile(j // dense.tile_width, CPU)[:, j % dense.tile_width].double() / m**0.5
    return P


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_rows_are_products_with_a_matrix_filled_column_by_column(kind, dtype):
    rows = normal(0, 21, D).to(dtype)
    found = make_row_projection(kind, 24, 7, D, CPU)(rows)
    assert found.dtype == dtype
    expected = rows.double() @ column_by_column(kind, 24, 7, D).T
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)


def test_an_sjlt_of_several_entries_a_column_adds_them_all():
    rows = normal(0, 5, D)
    found = SparseRowProjection(SparseMatrix(32, 4, 3), D, CPU)(rows)
    torch.testing.assert_close(found, rows @ column_by_column("sjlt", 32, 3, D, 4).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_stores_and_experiments_project_with_the_same_matrix(kind):
    experiment = projection_matrix(make_projector(kind, 7), D, 32, 32, trial=0)
    store = make_row_projection(kind, 32, 7, D, CPU)(torch.eye(D, dtype=torch.float64)).T
    torch.testing.assert_close(store, experiment, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_rows_beside_it(kind):
    rows, projection = normal(0, 40, D), make_row_projection(kind, 16, 7, D, CPU)
    together = projection(rows)
    for size in (1, 7, 16, 33):
        apart = torch.cat([projection(part) for part in rows.split(size)])
        torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-13)


def test_rows_of_sjlt_have_the_same_bits_whatever_the_number_of_threads():
    rows, projection = normal(0, 40, D).float(), make_row_projection("sjlt", 16, 7, D, CPU)
    alone = projection(rows)
    torch.set_num_threads(2)
    try:
        assert torch.equal(projection(rows), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_no_more_than_a_tile_of_a_dense_matrix_is_drawn_at_once(kind, drawn):
    make_row_projection(kind, 64, 0, D, CPU)(torch.ones(3, D))
    assert sum(drawn) >= 64 * D
    assert max(drawn) <= 2**10


def test_dense_rows_share_a_call_as_far_as_memory_allows():
    few, many = (make_row_projection("normal", 8, 0, d, CPU).rows_at_once for d in (10**9, 1000))
    assert few == 1
    assert many == row_projection.MOST_ROWS
