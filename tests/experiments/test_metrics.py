from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dattri.metric import lds as dattri_lds
from scipy.stats import spearmanr

from common.experiments.metrics import (
    bootstrap_interval,
    error_statistics,
    lds_per_query,
    pooled_errors,
)
from common.theory.ranks import unit_ranks

ROUNDING = 100 * torch.finfo(torch.float64).eps


def random_matrix(rows, columns, seed, levels=None):
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.randint(levels, (rows, columns), generator=generator).double()


def random_subsets(num_subsets, num_train, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_train, generator=generator)[: num_train // 2] for _ in range(num_subsets)])


# --- error statistics -------------------------------------------------------------------------------------


def test_error_statistics_equal_numpy():
    ratios = 1.0 + 0.3 * random_matrix(501, 1, seed=0)[:, 0]
    errors = np.abs(ratios.numpy() - 1.0)
    result = error_statistics(ratios)
    assert result.mean_ratio == pytest.approx(ratios.numpy().mean(), rel=ROUNDING)
    assert result.eps_mean == pytest.approx(errors.mean(), rel=ROUNDING)
    expected = np.quantile(errors, [0.5, 0.95, 0.99, 1.0])
    assert [result.eps_50, result.eps_95, result.eps_99, result.eps_max] == pytest.approx(expected, rel=ROUNDING)
    assert result.num_bad == 0


def test_error_counts_both_directions():
    result = error_statistics(torch.tensor([0.5, 1.5]))
    assert (result.mean_ratio, result.eps_mean, result.eps_max) == (1.0, 0.5, 0.5)


def test_non_finite_ratios_are_counted_and_change_nothing_else():
    good = [0.9, 1.2, 1.0, 0.7]
    clean = error_statistics(torch.tensor(good))
    dirty = error_statistics(torch.tensor([math.nan, *good[:2], math.inf, *good[2:], -math.inf]))
    assert dirty.num_bad == 3
    assert vars(dirty) | {"num_bad": 0} == vars(clean)


@pytest.mark.parametrize("ratios", [[], [math.nan, math.inf]])
def test_without_a_finite_ratio_everything_is_nan_but_the_count(ratios):
    result = vars(error_statistics(torch.tensor(ratios, dtype=torch.float64)))
    assert result.pop("num_bad") == len(ratios)
    assert all(math.isnan(value) for value in result.values())


def test_error_statistics_refuse_a_matrix():
    with pytest.raises(ValueError, match=r"\(k,\), not \(2, 3\)"):
        error_statistics(torch.ones(2, 3))


# --- Spearman ---------------------------------------------------------------------------------------------


def correlations(predicted, actual):
    """Return the Spearman correlation of each column: of scores, whose sums stand for lower losses."""
    return lds_per_query(-predicted, unit_ranks(actual))


@pytest.mark.parametrize("levels", [None, 20, 4, 2], ids=["no_ties", "few_ties", "many_ties", "binary"])
def test_spearman_equals_scipy_in_every_column(levels):
    predicted = random_matrix(50, 40, seed=1, levels=levels)
    actual = predicted * torch.linspace(-1, 1, 40) + random_matrix(50, 40, seed=2, levels=levels)
    expected = [spearmanr(predicted[:, i], actual[:, i]).statistic for i in range(40)]
    assert correlations(predicted, actual).numpy() == pytest.approx(np.array(expected), abs=ROUNDING)


def test_spearman_of_monotone_columns_is_plus_or_minus_one():
    values = random_matrix(30, 5, seed=3)
    assert correlations(values, values.exp()).numpy() == pytest.approx(1.0, abs=ROUNDING)
    assert correlations(values, -(values**3)).numpy() == pytest.approx(-1.0, abs=ROUNDING)
    assert correlations(values, values).max() <= 1.0


@pytest.mark.parametrize("bad", [torch.full((20,), 3.7), torch.zeros(20)], ids=["constant", "zero"])
def test_a_constant_column_on_either_side_is_nan_and_no_other(bad):
    predicted, actual = random_matrix(20, 4, seed=4), random_matrix(20, 4, seed=5)
    predicted[:, 1] = bad
    actual[:, 2] = bad
    assert correlations(predicted, actual).isnan().tolist() == [False, True, True, False]
    actual[:, 1] = bad
    assert correlations(predicted, actual)[1].isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_non_finite_entry_on_either_side_makes_its_column_nan(bad):
    predicted, actual = random_matrix(20, 4, seed=6), random_matrix(20, 4, seed=7)
    predicted[3, 0] = bad
    actual[8, 3] = bad
    assert correlations(predicted, actual).isnan().tolist() == [True, False, False, True]


def test_spearman_does_not_depend_on_scale_or_layout():
    predicted, actual = random_matrix(30, 6, seed=8), random_matrix(30, 6, seed=9)
    expected = correlations(predicted, actual)
    transposed = predicted.T.contiguous().T
    assert torch.equal(correlations(1e-200 * predicted, 1e200 * actual), expected)
    assert torch.equal(correlations(transposed, actual), expected)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 1\) and \(5, 3\)"):
        correlations(torch.ones(5, 1), torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"\(S, k\), not \(5,\)"):
        unit_ranks(torch.ones(5))


# --- linear datamodeling score ----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 3], ids=["no_ties", "ties"])
def test_lds_equals_dattri_on_the_same_scores(levels):
    """The library correlates the sums themselves, so its ground truth is minus the loss."""
    scores = random_matrix(60, 15, seed=10, levels=levels)
    subsets = random_subsets(25, 60, seed=11)
    sums = torch.stack([scores[subset].sum(dim=0) for subset in subsets])
    losses = -sums + 3.0 * random_matrix(25, 15, seed=12, levels=levels)
    if levels is not None:
        assert len(sums[:, 0].unique()) < 25
    expected, _ = dattri_lds(scores, (-losses, subsets))
    found = lds_per_query(sums, unit_ranks(losses))
    assert found.numpy() == pytest.approx(expected.numpy(), abs=ROUNDING)
    assert found.mean() > 0.1


def test_bad_queries_have_no_score_and_are_left_out_of_the_interval():
    sums, losses = random_matrix(40, 12, seed=13), random_matrix(40, 12, seed=14)
    clean = lds_per_query(sums[:, 3:], unit_ranks(losses[:, 3:]))
    sums[:, 0] = 0.0
    losses[:, 1] = 2.0
    losses[4, 2] = math.nan
    dirty = lds_per_query(sums, unit_ranks(losses))
    assert dirty.isnan().tolist() == [True] * 3 + [False] * 9
    assert torch.equal(dirty[3:], clean)
    assert bootstrap_interval(dirty, seed=5) == bootstrap_interval(clean, seed=5)


def test_score_is_positive_when_training_on_positive_samples_lowers_the_loss():
    """Ridge regression, refitted exactly on every subset, scored by its exact influence function.

    A copy of the query among the training samples has g_i = g_q, hence a positive score: training on the copy
    pulls the fit towards the query.
    """
    n, dimension, k, ridge = 200, 5, 30, 0.1
    inputs, queries = random_matrix(n, dimension, seed=16), random_matrix(k, dimension, seed=17)
    weights = random_matrix(dimension, 1, seed=18)[:, 0]
    targets = inputs @ weights + random_matrix(n, 1, seed=19)[:, 0]
    query_targets = queries @ weights + random_matrix(k, 1, seed=20)[:, 0]

    def fit(rows):
        x, y = inputs[rows], targets[rows]
        return torch.linalg.solve(x.T @ x + len(x) * ridge * torch.eye(dimension).double(), x.T @ y)

    subsets = random_subsets(60, n, seed=21)
    losses = torch.stack([0.5 * (queries @ fit(subset) - query_targets) ** 2 for subset in subsets])

    full = fit(torch.arange(n))
    gradients = (inputs @ full - targets)[:, None] * inputs
    query_gradients = (queries @ full - query_targets)[:, None] * queries
    hessian = inputs.T @ inputs / n + ridge * torch.eye(dimension).double()
    scores = gradients @ torch.linalg.solve(hessian, query_gradients.T)
    sums = torch.stack([scores[subset].sum(dim=0) for subset in subsets])

    assert (torch.linalg.solve(hessian, query_gradients.T).T * query_gradients).sum(dim=1).min() > 0
    found = lds_per_query(sums, unit_ranks(losses))
    assert bootstrap_interval(found, seed=0)[0] > 0.5
    assert bootstrap_interval(-found, seed=0)[1] < -0.5


# --- bootstrap --------------------------------------------------------------------------------------------


def test_interval_covers_the_true_mean_as_often_as_it_says():
    """2,000 samples of k = 100 standard normals; coverage of the percentile interval there is 0.946.

    20 weight matrices, so binomial and resampling noise together are 0.0054: the bounds lie 3.5 of those
    away, a false alarm rate below 6e-4 for a change of seeds. An interval of level 0.92 or 0.98 fails.
    """
    samples = random_matrix(20 * 100, 100, seed=22).reshape(20, 100, 100)
    covered = 0
    for seed in range(20):
        for sample in samples[seed]:
            low, high = bootstrap_interval(sample, seed)
            covered += low <= 0.0 <= high
    assert 0.927 <= covered / 2000 <= 0.965


@pytest.mark.parametrize(("level", "normal_quantile"), [(0.95, 1.95996), (0.5, 0.67449)])
def test_interval_has_the_width_of_the_normal_approximation(level, normal_quantile):
    """20,000 resamples: each end has a relative Monte Carlo error below 2 % of the half width (1 sigma)."""
    values = random_matrix(400, 1, seed=23)[:, 0]
    low, high = bootstrap_interval(values, seed=1, num_resamples=20_000, level=level)
    half_width = normal_quantile * values.std().item() / math.sqrt(400)
    assert low == pytest.approx(values.mean().item() - half_width, abs=0.08 * half_width)
    assert high == pytest.approx(values.mean().item() + half_width, abs=0.08 * half_width)


def test_interval_depends_on_the_seed_only():
    values = random_matrix(50, 1, seed=24)[:, 0]
    first = bootstrap_interval(values, seed=3)
    torch.rand(7)
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first


def test_interval_ignores_non_finite_values():
    values = random_matrix(50, 1, seed=25)[:, 0]
    dirty = torch.cat([torch.tensor([math.nan, math.inf]).double(), values])
    assert bootstrap_interval(dirty, seed=0) == bootstrap_interval(values, seed=0)


def test_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(torch.full((9,), 0.25), seed=0) == pytest.approx((0.25, 0.25), abs=ROUNDING)


def test_fewer_than_two_queries_have_no_interval():
    assert all(map(math.isnan, bootstrap_interval(torch.tensor([0.5, math.nan]), seed=0)))


# --- errors of many pairs -----------------------------------------------------------------------------------


def test_errors_are_pooled_as_numpy_pools_them_and_200_of_them_stand_for_all():
    errors = torch.rand(40, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    found = pooled_errors(errors)
    flat = errors.flatten().numpy()
    expected = [flat.mean(), *np.quantile(flat, [0.5, 0.95, 0.99, 1])]
    assert [found.eps_mean, found.eps_50, found.eps_95, found.eps_99, found.eps_max] == pytest.approx(expected)
    assert found.quantiles == pytest.approx(np.quantile(flat, (np.arange(200) + 0.5) / 200), rel=1e-6)
    assert np.quantile(found.quantiles, [0.5, 0.95, 0.99], method="hazen") == pytest.approx(expected[1:4], rel=5e-3)


def test_errors_that_are_not_finite_are_left_out():
    errors = torch.tensor([[1.0, torch.nan], [torch.inf, 3.0]])
    assert pooled_errors(errors).eps_mean == 2.0
    assert np.isnan(pooled_errors(torch.full((2,), torch.nan)).eps_95)
