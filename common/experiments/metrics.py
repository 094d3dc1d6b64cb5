"""How good sketched scores are: error statistics of influence, linear datamodeling score, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import nan

import numpy as np
import torch
from torch import Tensor

from common.theory.ranks import unit_ranks

NUM_QUANTILES = 200


@dataclass(frozen=True)
class ErrorStatistics:
    """Distribution over queries of ε = |ratio − 1|; all but `num_bad` are NaN where no ratio is finite."""

    mean_ratio: float
    """Mean of the finite ratios of sketched to exact self-influence; 1 means unbiased."""
    eps_mean: float
    """Mean of ε."""
    eps_50: float
    """Median of ε."""
    eps_95: float
    """95 % quantile of ε, linear interpolation."""
    eps_99: float
    """99 % quantile of ε, linear interpolation."""
    eps_max: float
    """Largest ε."""
    num_bad: int
    """Ratios that are NaN or infinite: left out of every number above."""


def error_statistics(ratios: Tensor) -> ErrorStatistics:
    """Return mean ratio and the mean, quantiles and maximum of ε = |ratio − 1| over the finite ratios.

    Args:
        ratios: (k,) sketched over exact self-influence, dimensionless.

    Raises:
        ValueError: `ratios` is not one-dimensional.
    """
    if ratios.ndim != 1:
        raise ValueError(f"ratios must have shape (k,), not {tuple(ratios.shape)}")
    ratios = ratios.detach().double()
    finite = ratios[ratios.isfinite()]
    num_bad = len(ratios) - len(finite)
    if len(finite) == 0:
        return ErrorStatistics(nan, nan, nan, nan, nan, nan, num_bad)
    errors = (finite - 1.0).abs()
    levels = torch.tensor([0.5, 0.95, 0.99], dtype=errors.dtype, device=errors.device)
    eps_50, eps_95, eps_99 = errors.quantile(levels).tolist()
    return ErrorStatistics(
        mean_ratio=finite.mean().item(),
        eps_mean=errors.mean().item(),
        eps_50=eps_50,
        eps_95=eps_95,
        eps_99=eps_99,
        eps_max=errors.max().item(),
        num_bad=num_bad,
    )


@dataclass(frozen=True)
class PooledErrors:
    """Distribution of many errors; NaN where none is finite."""

    eps_mean: float
    """Mean."""
    eps_50: float
    """Median."""
    eps_95: float
    """95 % quantile, linear interpolation."""
    eps_99: float
    """99 % quantile, linear interpolation."""
    eps_max: float
    """Largest."""
    quantiles: tuple[float, ...]
    """Quantiles at (i + 1/2)/200, to seven digits: 200 equally likely errors that stand for all."""


def pooled_errors(errors: Tensor) -> PooledErrors:
    """Return the statistics of all finite errors of a tensor of any shape."""
    values = errors.flatten().cpu().double().numpy()
    values = np.sort(values[np.isfinite(values)])
    if len(values) == 0:
        return PooledErrors(nan, nan, nan, nan, nan, (nan,) * NUM_QUANTILES)
    levels = np.array([0.5, 0.95, 0.99, *((np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES)])
    # of values in order: numpy's own quantile would partition them again
    eps_50, eps_95, eps_99, *quantiles = np.interp(levels * (len(values) - 1), np.arange(len(values)), values).tolist()
    short = tuple(float(f"{value:.6e}") for value in quantiles)
    return PooledErrors(float(values.mean()), eps_50, eps_95, eps_99, float(values[-1]), short)


def lds_per_query(subset_score_sums: Tensor, loss_ranks: Tensor) -> Tensor:
    """Return the linear datamodeling score of every query.

        LDS(q) = Spearman over subsets S of  ( −Σ_{i∈S} score(i, q) ,  loss of q when trained on S )

    Sign convention: a positive score says that training on sample i *lowers* the loss of q, so the predicted
    loss is *minus* the sum, and a useful score has a positive LDS.

    Reference: Park, Georgiev, Ilyas, Leclerc, Madry, "TRAK: Attributing Model Behavior at Scale",
    arXiv 2303.14186.

    Args:
        subset_score_sums: (S, k) sums of the scores over the members of each subset.
        loss_ranks: (S, k) `unit_ranks` of the *losses* after training on each subset; where a ground truth
            stores minus the loss, turn its sign before ranking.

    Returns:
        (k,) float64; NaN where the sums or the losses of a query are constant or non-finite.

    Raises:
        ValueError: the shapes differ or are not two-dimensional.
    """
    predicted_ranks = unit_ranks(-subset_score_sums)
    if predicted_ranks.shape != loss_ranks.shape:
        raise ValueError(f"shapes to correlate differ: {tuple(predicted_ranks.shape)} and {tuple(loss_ranks.shape)}")
    # Rounding may leave a perfect correlation 1e-16 above 1; NaN passes through.
    return (predicted_ranks * loss_ranks).sum(dim=0).clamp(-1.0, 1.0)


def bootstrap_interval(
    values: Tensor, seed: int, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of the finite values.

    Queries are resampled, nothing else: the interval says how far the mean would move with other queries,
    not with other subset models, which all queries share. For few values it covers a little less than `level`:
    near 0.92 instead of 0.95 for k = 20 normal values.

    Reference: Efron, Tibshirani, "An Introduction to the Bootstrap", chapter 13.

    Args:
        values: (k,) one number a query, on the CPU.
        seed: of the resampling; equal seeds give equal intervals.
        num_resamples: resamples of the queries.
        level: coverage, in (0, 1).

    Returns:
        (low, high); both NaN for fewer than two finite values, which say nothing about their spread.
    """
    finite = values[values.isfinite()].detach().double().numpy()
    if len(finite) < 2:
        return nan, nan
    # Einsum stays on one thread: on a busy machine a threaded product this small waits 100 times its own cost.
    means = np.einsum("rk,k->r", _resampling_weights(len(finite), seed, num_resamples), finite)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail]).tolist()
    return low, high


@lru_cache(maxsize=16)
def _resampling_weights(num_values: int, seed: int, num_resamples: int) -> np.ndarray:
    # (num_resamples, num_values): each row is Multinomial(num_values, uniform) / num_values, so the product with
    # the values is one resampled mean a row. Kept, because all cells of an experiment share it.
    generator = np.random.default_rng(seed)
    uniform = np.full(num_values, 1.0 / num_values)
    return generator.multinomial(num_values, uniform, size=num_resamples) / num_values
