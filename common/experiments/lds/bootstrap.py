"""How a mean LDS would move with other queries and other subset models, both resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_RESAMPLES = 500
QUERIES_AT_ONCE = 32


@dataclass(frozen=True)
class Resampling:
    """How often every subset model and every query is drawn in each resample; float32 on the CPU."""

    subsets: Tensor
    """(S, B) counts, S in all."""
    queries: Tensor
    """(k, B) counts, k in all."""


def make_resampling(num_subsets: int, num_queries: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> Resampling:
    """Return independent draws with replacement of S subset models and of k queries."""
    generator = np.random.default_rng([seed, num_subsets, num_queries])
    counts = (
        generator.multinomial(size, np.full(size, 1 / size), size=num_resamples).T
        for size in (num_subsets, num_queries)
    )
    return Resampling(*(torch.from_numpy(np.ascontiguousarray(one)).float() for one in counts))


def bootstrap_lds(subset_score_sums: Tensor, losses: Tensor, resampling: Resampling) -> Tensor:
    """Return the mean LDS over the resampled queries, each against the resampled subset models.

    A model drawn c times stands c times, tied with itself. With mid-ranks r_S = Σ_T c_T ([x_T < x_S] + [x_T = x_S]/2),
    whose mean is S/2, the correlation of a query is that of the r of −scores and of losses, weighted by c.

    Args:
        subset_score_sums: (S, k) sums of the scores over the members of each subset.
        losses: (S, k) losses, after training on each subset.
        resampling: the draws.

    Returns:
        (B,) float64; queries whose column is constant or not finite are left out of the mean, NaN where none is left.
    """
    counts = resampling.subsets
    total, weight = torch.zeros(counts.shape[1]).double(), torch.zeros(counts.shape[1]).double()
    for start in range(0, losses.shape[1], QUERIES_AT_ONCE):
        chunk = slice(start, start + QUERIES_AT_ONCE)
        predicted, actual = (_centred_ranks(x.cpu()[:, chunk], counts) for x in (-subset_score_sums, losses))
        weighted = predicted * counts
        covariance, own = (weighted * actual).sum(1), (weighted * predicted).sum(1)
        correlation = (covariance / (own * (actual.square() * counts).sum(1)).sqrt()).double()
        drawn = resampling.queries[chunk] * correlation.isfinite()
        total += (correlation.nan_to_num(0.0, 0.0, 0.0) * drawn).sum(0)
        weight += drawn.sum(0)
    return total / weight


def _centred_ranks(values: Tensor, counts: Tensor) -> Tensor:
    """Return the (k, S, B) mid-ranks of the columns of (S, k) values among the models drawn, minus their mean."""
    columns = values.T.double()
    other, own = columns[:, None, :], columns[:, :, None]
    below = (other < own).float() + 0.5 * (other == own).float()
    ranks = below @ counts - counts.sum(0) / 2
    return torch.where(columns.isfinite().all(1)[:, None, None], ranks, torch.nan)
