"""Pooled error quantiles against random draws of the law, and against laws known in closed form."""

from __future__ import annotations

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
    # quantiles are those of 400 queries, whose positions differ by up to 1/400
    for level, quantile in zip(LEVELS, quantiles, strict=True):
        low, high = halfnorm.ppf([level - 1 / 400, min(level + 1 / 400, 1 - 1e-4)])
        assert 2 * low < quantile.item() < 2 * high


@pytest.mark.parametrize("dof", [8, 50])
def test_with_the_moments_of_a_chi_square_it_has_its_quantiles(dof):
    rows = 4000
    std, skew = constant((2 / dof) ** 0.5, rows), constant((8 / dof) ** 0.5, rows)
    _, median, q95, q99 = pooled_error_summary(constant(0.0, rows), std, skew)
    for level, found in zip(LEVELS, (median, q95, q99), strict=True):
        # share of chi-square/dof further than `found` from 1
        outside = chi2.sf(dof * (1 + found.item()), dof) + chi2.cdf(dof * (1 - found.item()), dof)
        assert 1 - outside == pytest.approx(level, abs=0.004)


def test_quantiles_are_the_means_of_those_that_single_sketches_report():
    """10,000 sketches of 200 independent queries: their mean 95 % quantile has a standard error below 0.1 %."""
    stream = generator(0)
    bias, std = (torch.rand(200, 2, generator=stream, dtype=torch.float64) for _ in range(2))
    draws = (bias + std * torch.randn(10_000, 200, 2, generator=stream, dtype=torch.float64)).abs()
    mean, *quantiles = pooled_error_summary(bias, std, torch.zeros_like(std))
    torch.testing.assert_close(mean, draws.mean((0, 1)), rtol=0.005, atol=0)
    for level, found in zip(LEVELS, quantiles, strict=True):
        # rows that differ have less noisy order statistics than the position assumes: up to 1 % at 99 %
        torch.testing.assert_close(found, draws.quantile(level, dim=1).mean(0), rtol=0.015, atol=0)


def test_an_undefined_column_stays_undefined():
    bias = torch.zeros(50, 2, dtype=torch.float64)
    bias[:, 1] = torch.nan
    for values in pooled_error_summary(bias, torch.ones_like(bias), torch.zeros_like(bias)):
        assert values[0].isfinite()
        assert values[1].isnan()
