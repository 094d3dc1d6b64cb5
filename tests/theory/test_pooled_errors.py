"""Pooled error quantiles against random draws of the law, and against laws known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, halfnorm

from common.theory.pooled_errors import LEVELS, pooled_error_summary
from tests.reference import generator


def constant(value: float, rows: int = 400) -> torch.Tensor:
    return torch.full((rows, 1), value, dtype=torch.float64)


def test_without_bias_and_skewness_it_is_the_half_normal_distribution():
    mean, *quantiles = pooled_error_summary(constant(0.0), constant(2.0), constant(0.0))
    assert mean.item() == pytest.approx(2 * halfnorm.mean(), rel=1e-3)
    assert [quantile.item() for quantile in quantiles] == pytest.approx(2 * halfnorm.ppf(LEVELS), rel=1e-3)


@pytest.mark.parametrize("dof", [8, 50])
def test_with_the_moments_of_a_chi_square_it_has_its_quantiles(dof):
    rows = 4000
    std, skew = constant((2 / dof) ** 0.5, rows), constant((8 / dof) ** 0.5, rows)
    _, median, q95, q99 = pooled_error_summary(constant(0.0, rows), std, skew)
    for level, found in zip(LEVELS, (median, q95, q99), strict=True):
        # share of chi-square/dof further than `found` from 1
        outside = chi2.sf(dof * (1 + found.item()), dof) + chi2.cdf(dof * (1 - found.item()), dof)
        assert 1 - outside == pytest.approx(level, abs=0.004)


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_quantiles_are_those_of_all_draws_of_all_rows_pooled(rows):
    """A million draws: standard errors of 0.14 % at most, of which 0.8 % is five and the law's own 0.1 %."""
    stream = generator(0)
    bias, std = (torch.rand(rows, 2, generator=stream, dtype=torch.float64) for _ in range(2))
    shape = (1_000_000 // rows, rows, 2)
    draws = (bias + std * torch.randn(shape, generator=stream, dtype=torch.float64)).abs().flatten(0, 1)
    mean, *quantiles = pooled_error_summary(bias, std, torch.zeros_like(std))
    torch.testing.assert_close(mean, draws.mean(0), rtol=0.005, atol=0)
    for level, found in zip(LEVELS, quantiles, strict=True):
        expected = torch.from_numpy(np.quantile(draws.numpy(), level, axis=0))
        torch.testing.assert_close(found, expected, rtol=0.008, atol=0)


def test_how_many_rows_repeat_changes_no_quantile():
    stream = generator(1)
    bias, std, skew = (torch.rand(40, 1, generator=stream, dtype=torch.float64) for _ in range(3))
    few = pooled_error_summary(bias, std, skew)
    many = pooled_error_summary(*(values.repeat(50, 1) for values in (bias, std, skew)))
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=0)


def test_an_undefined_column_stays_undefined():
    bias = torch.zeros(50, 2, dtype=torch.float64)
    bias[:, 1] = torch.nan
    for values in pooled_error_summary(bias, torch.ones_like(bias), torch.zeros_like(bias)):
        assert values[0].isfinite()
        assert values[1].isnan()
