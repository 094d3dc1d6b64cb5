from __future__ import annotations

import pytest
import torch

from common.gradients import gram
from tests.reference import normal

# the relative rounding of a sum of products, times a margin for its length
ROUNDING = 1e-13


@pytest.fixture(autouse=True)
def narrow_panels(monkeypatch):
    """Several panels, the last one narrower, at sizes that cost nothing."""
    monkeypatch.setattr(gram, "PANEL_ROWS", 8)


def dense(rows):
    exact = rows.double()
    return exact @ exact.T


@pytest.mark.parametrize("n", [1, 7, 8, 9, 30])
def test_panels_cover_the_lower_triangle_and_at_most_their_own_corner_above_it(n):
    covered = torch.zeros(n, n, dtype=torch.int64)
    for rows, before in gram.panels(n):
        covered[rows, before] += 1
    assert (covered.tril() == torch.ones(n, n).tril()).all()
    assert covered.sum() <= n * (n + 8) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_add_up_to_the_dense_product_of_the_rows_as_they_are_stored(dtype):
    rows = normal(0, 30, 50).to(dtype)
    found = torch.zeros(30, 30, dtype=torch.float64)
    for block in rows.split(17, dim=1):
        gram.add_gram(found, block)
    gram.mirror_lower_triangle(found)
    torch.testing.assert_close(found, dense(rows), rtol=0, atol=50 * ROUNDING)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("m", [3, 64, 65])
def test_the_gram_matrix_of_columns_is_dense_in_its_lower_triangle_whatever_the_chunk(m):
    matrix = normal(1, m, 30).float()
    matrix[m // 2] = 0  # an empty row
    for chunk in (1, 16, 1000):
        found = gram.gram_of_columns(matrix, chunk)
        torch.testing.assert_close(found.tril(), dense(matrix.T).tril(), rtol=0, atol=m * ROUNDING)


@pytest.mark.parametrize("width", [30, 41])
def test_the_zeros_of_a_trapezoid_are_not_missed(width):
    rows = normal(2, 30, width).triu()
    found = gram.gram_of_upper_trapezoid(rows)
    torch.testing.assert_close(found.tril(), dense(rows).tril(), rtol=0, atol=width * ROUNDING)
    used = torch.full((30, 30), torch.nan, dtype=torch.float64)
    assert gram.gram_of_upper_trapezoid(rows, out=used) is used
    assert torch.equal(used.tril(), found.tril())


def test_mirroring_keeps_the_lower_triangle_and_the_diagonal():
    matrix = normal(3, 9, 9)
    mirrored = matrix.clone()
    gram.mirror_lower_triangle(mirrored)
    assert torch.equal(mirrored, mirrored.T)
    assert torch.equal(mirrored.tril(), matrix.tril())
