from __future__ import annotations

import pytest
import torch

from common.sketches.cholesky import factor_with_ridge, whiten
from tests.reference import normal

pytestmark = pytest.mark.usefixtures("one_thread")


def positive_semidefinite(size):
    rows = normal(0, size, size + 3)
    return rows @ rows.T / size


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 127, 128, 129, 256])
def test_whitened_rows_have_the_inner_products_of_the_dense_solve(size):
    matrix, rows = positive_semidefinite(size), normal(1, 4, size)
    expected = rows @ torch.linalg.solve(matrix + 0.1 * torch.eye(size, dtype=torch.float64), rows.T)
    found = whiten(factor_with_ridge(matrix, 0.1), rows)
    torch.testing.assert_close(found @ found.T, expected)


@pytest.mark.parametrize("size", [1, 8, 120, 121, 128, 1000, 1023, 1024])
def test_the_border_is_thin_and_never_ends_at_a_power_of_two(size):
    bordered = len(factor_with_ridge(torch.zeros(size, size, dtype=torch.float64), 1.0))
    assert size <= bordered < size + 16
    assert bordered % 8 == 0
    assert bordered % 128 != 0


def test_only_the_lower_triangle_is_read_and_nothing_is_written():
    matrix = positive_semidefinite(20)
    lower = matrix.tril() + torch.full_like(matrix, torch.nan).triu(1)
    before = lower.clone()
    assert torch.equal(factor_with_ridge(lower, 0.1), factor_with_ridge(matrix, 0.1))
    assert torch.equal(lower.nan_to_num(7), before.nan_to_num(7))


def test_a_matrix_that_is_not_positive_definite_is_an_error():
    with pytest.raises(torch.linalg.LinAlgError):
        factor_with_ridge(-torch.eye(3, dtype=torch.float64), 0.5)
