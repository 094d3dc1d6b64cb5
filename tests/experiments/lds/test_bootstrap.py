from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from common.experiments.lds.bootstrap import bootstrap_lds, make_resampling
from common.experiments.metrics import lds_per_query
from common.theory.ranks import unit_ranks

SUBSETS, QUERIES, RESAMPLES = 12, 40, 30


@pytest.fixture
def sums_and_losses():
    generator = torch.Generator().manual_seed(1)
    losses = torch.randn(SUBSETS, QUERIES, generator=generator)
    sums = -losses.double() + 2 * torch.randn(SUBSETS, QUERIES, generator=generator)
    sums[:, 3] = sums[:, 3].round()  # ties of their own
    return sums, losses


def test_every_resample_is_the_mean_of_scipys_correlations_of_what_was_drawn(sums_and_losses):
    sums, losses = sums_and_losses
    resampling = make_resampling(SUBSETS, QUERIES, seed=4, num_resamples=RESAMPLES)
    found = bootstrap_lds(sums, losses, resampling)
    for b in range(RESAMPLES):
        models = np.repeat(np.arange(SUBSETS), resampling.subsets[:, b].int().numpy())
        queries = np.repeat(np.arange(QUERIES), resampling.queries[:, b].int().numpy())
        expected = [spearmanr(-sums[models, q], losses[models, q]).statistic for q in queries]
        assert found[b].item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_draws_add_up_and_equal_seeds_give_equal_draws():
    first, second = (make_resampling(SUBSETS, QUERIES, seed=4) for _ in range(2))
    assert torch.equal(first.subsets, second.subsets)
    assert (first.subsets.sum(0) == SUBSETS).all()
    assert (first.queries.sum(0) == QUERIES).all()
    assert not torch.equal(first.subsets, make_resampling(SUBSETS, QUERIES, seed=5).subsets)


def test_drawing_everything_once_gives_the_lds_itself_and_bad_queries_are_left_out(sums_and_losses):
    sums, losses = sums_and_losses
    losses[:, 5], sums[0, 7] = 1.0, torch.nan
    once = make_resampling(SUBSETS, QUERIES, seed=0, num_resamples=1)
    once.subsets[:], once.queries[:] = 1, 1
    per_query = lds_per_query(sums, unit_ranks(losses))
    assert per_query.isnan().sum() == 2
    assert bootstrap_lds(sums, losses, once).item() == pytest.approx(per_query.nanmean().item(), abs=1e-6)
    assert bootstrap_lds(torch.full_like(sums, torch.nan), losses, once).isnan().all()


def test_the_spread_is_that_of_other_models_and_queries():
    """40 draws of 30 models and 40 queries: their standard deviation, known to 11 %, against the mean bootstrap's."""
    generator = torch.Generator().manual_seed(2)
    means, spreads = [], []
    for seed in range(40):
        # one direction of the losses is shared by all queries, as retraining shares its subsets
        shared = torch.randn(30, 1, generator=generator)
        losses = shared + torch.randn(30, QUERIES, generator=generator)
        sums = -losses + 3 * torch.randn(30, 1, generator=generator) + torch.randn(30, QUERIES, generator=generator)
        resampling = make_resampling(30, QUERIES, seed, num_resamples=100)
        spreads.append(bootstrap_lds(sums, losses, resampling).std().item())
        means.append(lds_per_query(sums.double(), unit_ranks(losses)).mean().item())
    assert np.mean(spreads) == pytest.approx(np.std(means, ddof=1), rel=0.4)
