from __future__ import annotations

import pytest
import torch

from common.theory.kronecker import dimension_of, factorised_dimensions

RIDGES = torch.tensor([1e-4, 1e-2, 1.0, 30.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def factors():
    generator = torch.Generator().manual_seed(0)
    roots = (torch.randn(n, n - 2, generator=generator, dtype=torch.float64) for n in (7, 5))
    return [root @ root.T for root in roots]


def eigenvalues(matrix):
    return torch.linalg.eigvalsh(matrix).clamp(min=0)


def dense_dimension(matrix, ridge):
    return torch.linalg.solve(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype), matrix).trace()


def test_the_dimension_of_a_product_is_that_of_the_dense_kronecker_matrix(factors):
    a, e = factors
    expected = torch.stack([dense_dimension(torch.kron(a, e), ridge) for ridge in RIDGES])
    found = dimension_of(torch.outer(eigenvalues(e), eigenvalues(a)), RIDGES)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_either_side_has_the_dimension_at_the_ridge_over_the_norm_of_the_other(factors):
    a, e = factors
    found = factorised_dimensions(eigenvalues(a), eigenvalues(e), RIDGES)
    of_a = torch.stack([dense_dimension(a, ridge / torch.linalg.matrix_norm(e, 2)) for ridge in RIDGES])
    of_e = torch.stack([dense_dimension(e, ridge / torch.linalg.matrix_norm(a, 2)) for ridge in RIDGES])
    torch.testing.assert_close(found.of_a, of_a, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.of_e, of_e, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.product, of_a * of_e, rtol=1e-10, atol=0)


def test_the_factorised_dimension_is_at_least_a_third_of_the_joint_one_below_the_norm(factors):
    generator = torch.Generator().manual_seed(1)
    for decay in (0.1, 1.0, 6.0):
        a, e = (torch.exp(-decay * torch.rand(n, generator=generator, dtype=torch.float64) * 5) for n in (60, 40))
        ridges = a.max() * e.max() * torch.logspace(-9, 0, 10, dtype=torch.float64)
        joint = dimension_of(torch.outer(e, a), ridges)
        assert (factorised_dimensions(a, e, ridges).product >= joint / 3).all()


def test_scaling_one_factor_up_and_the_other_down_changes_nothing(factors):
    a, e = map(eigenvalues, factors)
    one, other = (factorised_dimensions(scale * a, e / scale, RIDGES).product for scale in (1.0, 1e6))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_factor_that_is_zero_has_dimension_zero():
    nothing, e = torch.zeros(3), torch.ones(2)
    assert dimension_of(torch.outer(e, nothing), RIDGES).tolist() == [0.0] * 4
    assert factorised_dimensions(nothing, e, RIDGES).product.tolist() == [0.0] * 4
    assert dimension_of(torch.ones(2, 3), torch.tensor([1.0])).item() == 3.0
