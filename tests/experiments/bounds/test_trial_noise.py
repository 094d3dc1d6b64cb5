"""Noise of pooled quantiles against resampling written out, and against the spread over many made-up runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from common.experiments.bounds.trial_noise import NUM_RESAMPLES, pooled_quantile_noise

SEED = 3


def gaussian_errors(stream, num_trials, num_queries, correlation):
    """Return |ratio - 1| of made-up sketches; `correlation` is that between queries of one sketch."""
    shared, own = stream.normal(size=(num_trials, 1)), stream.normal(size=(num_trials, num_queries))
    return np.abs(correlation**0.5 * shared + (1 - correlation) ** 0.5 * own)


def resampled_by_hand(errors, level):
    """Return the bootstrap by concatenating the finite errors of the sketches that every resample holds."""
    kept = [row[np.isfinite(row)] for row in errors if np.isfinite(row).any()]
    num_trials = len(kept)
    counts = np.random.default_rng(SEED).multinomial(num_trials, [1 / num_trials] * num_trials, size=NUM_RESAMPLES)
    quantiles = [
        np.quantile(np.concatenate([np.tile(row, count) for row, count in zip(kept, drawn, strict=True)]), level)
        for drawn in counts
    ]
    return np.std(quantiles, ddof=1) * math.sqrt(num_trials / (num_trials - 1))


@pytest.mark.parametrize("level", [0.0, 0.5, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (5, 7), (5, 500), (30, 33)])
def test_it_equals_resampling_sketches_and_pooling_them_by_hand(shape, level):
    errors = gaussian_errors(np.random.default_rng(0), *shape, correlation=0.3)
    expected = resampled_by_hand(errors, level)
    assert pooled_quantile_noise(errors, level, SEED) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ties_and_errors_that_are_not_finite_are_no_exception():
    errors = gaussian_errors(np.random.default_rng(0), 6, 40, correlation=0.3).round(1)
    errors[0, :20], errors[1, 5], errors[2] = math.nan, math.inf, math.nan
    expected = resampled_by_hand(errors, 0.95)
    assert expected > 0
    assert pooled_quantile_noise(errors, 0.95, SEED) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_trials", [2, 5])
def test_it_is_the_standard_deviation_over_runs_with_other_sketches(num_trials):
    """2,000 made-up runs of 60 queries with correlation 0.05.

    The sd over runs has a relative standard error of 1.6 %, the root mean square of the noise one of at most 1.6 %: a
    gap of 11 % is five of both (false alarm 6e-7). Without the factor √(T/(T-1)) it is 29 % for two sketches.
    """
    stream = np.random.default_rng(num_trials)
    runs = [gaussian_errors(stream, num_trials, 60, correlation=0.05) for _ in range(2000)]
    quantiles = np.array([np.quantile(errors, 0.95) for errors in runs])
    noise = np.array([pooled_quantile_noise(errors, 0.95, SEED) for errors in runs])
    assert np.sqrt((noise**2).mean()) == pytest.approx(quantiles.std(ddof=1), rel=0.11)
    # Student's t says how often the truth is further than 3 noises away: 20 % and 4 %, here with standard errors of 0.9
    # and 0.4 %; five of them and the law's own part, as t is exact for means alone
    beyond = (np.abs(quantiles - norm.ppf(0.975)) > 3 * noise).mean()
    expected = 2 * student.sf(3, num_trials - 1)
    assert abs(beyond - expected) < 5 * math.sqrt(expected * (1 - expected) / 2000) + 0.02


def test_sketches_that_agree_leave_no_noise_and_a_single_one_says_nothing():
    errors = gaussian_errors(np.random.default_rng(0), 1, 50, correlation=0.0)
    assert pooled_quantile_noise(np.repeat(errors, 4, axis=0), 0.5, SEED) < 0.05 * errors.std()
    assert pooled_quantile_noise(np.full((4, 9), 0.2), 0.95, SEED) == 0
    assert math.isnan(pooled_quantile_noise(errors, 0.95, SEED))
    assert math.isnan(pooled_quantile_noise(np.full((4, 9), math.nan), 0.95, SEED))
    assert math.isnan(pooled_quantile_noise(np.vstack([errors, np.full((3, 50), math.inf)]), 0.95, SEED))


def test_equal_seeds_give_equal_noise():
    errors = gaussian_errors(np.random.default_rng(0), 5, 50, correlation=0.1)
    noise = [pooled_quantile_noise(errors, 0.95, seed) for seed in (1, 1, 2)]
    assert noise[0] == noise[1]
    assert noise[0] == pytest.approx(noise[2], rel=0.3)
    assert noise[0] != noise[2]
