from __future__ import annotations

import pytest
import torch

from common.sketches.cholesky import factor_with_ridge, whiten, workspace_for
from tests.reference import normal

pytestmark = pytest.mark.usefixtures("one_thread")


def positive_semidefinite(size):
    rows = normal(0, size, size + 3)
    return rows @ rows.T / size


def factored(matrix, ridge):
    return factor_with_ridge(matrix, ridge, workspace_for(matrix))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 127, 128, 129, 256])
def test_whitened_rows_have_the_inner_products_of_the_dense_solve(size):
    matrix, rows = positive_semidefinite(size), normal(1, 4, size)
    expected = rows @ torch.linalg.solve(matrix + 0.1 * torch.eye(size, dtype=torch.float64), rows.T)
    found = whiten(factored(matrix, 0.1), rows)
    torch.testing.assert_close(found @ found.T, expected)


@pytest.mark.parametrize("size", [1, 8, 120, 121, 128, 1000, 1023, 1024])
def test_the_border_is_thin_and_never_ends_at_a_power_of_two(size):
    bordered = len(factored(torch.zeros(size, size, dtype=torch.float64), 1.0))
    assert size <= bordered < size + 16
    assert bordered % 8 == 0
    assert bordered % 128 != 0


def test_only_the_lower_triangle_is_read_and_nothing_is_written():
    matrix = positive_semidefinite(20)
    lower = matrix.tril() + torch.full_like(matrix, torch.nan).triu(1)
    before = lower.clone()
    assert torch.equal(factored(lower, 0.1), factored(matrix, 0.1))
    assert torch.equal(lower.nan_to_num(7), before.nan_to_num(7))


def test_one_workspace_serves_every_ridge_and_every_leading_block():
    matrix = positive_semidefinite(130)
    workspace = workspace_for(matrix)
    for size in (130, 17, 128, 1):
        block = matrix[:size, :size]
        found = factor_with_ridge(block, 0.1, workspace)
        assert found.data_ptr() == workspace.data_ptr()
        assert torch.equal(found, factored(block, 0.1))
        assert found.triu(1).abs().max() == 0


def test_a_matrix_that_is_not_positive_definite_is_an_error():
    with pytest.raises(torch.linalg.LinAlgError):
        factored(-torch.eye(3, dtype=torch.float64), 0.5)
