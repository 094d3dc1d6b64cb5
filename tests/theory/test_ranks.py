from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from common.theory.ranks import unit_ranks


def values(levels: int) -> torch.Tensor:
    """Return (30, 8) numbers with many ties."""
    return torch.randint(0, levels, (30, 8), generator=torch.Generator().manual_seed(levels)).double()


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_columns_are_average_ranks_centred_and_of_unit_length(levels):
    ranks = rankdata(values(levels).numpy(), axis=0)
    centred = ranks - ranks.mean(0)
    np.testing.assert_allclose(unit_ranks(values(levels)), centred / np.linalg.norm(centred, axis=0), atol=1e-15)


def test_inner_products_are_spearman_correlations():
    first, second = values(7), values(11)
    expected = [spearmanr(first[:, i], second[:, i]).statistic for i in range(8)]
    np.testing.assert_allclose((unit_ranks(first) * unit_ranks(second)).sum(0), expected, atol=1e-14)


def test_a_constant_column_and_one_with_a_number_that_is_not_finite_are_nan_and_no_other():
    bad = values(5)
    bad[:, 1] = 4
    bad[3, 2], bad[4, 5] = torch.nan, torch.inf
    assert unit_ranks(bad).isnan().all(0).tolist() == [False, True, True, False, False, True, False, False]


def test_anything_but_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"must have shape \(S, k\), not \(5,\)"):
        unit_ranks(torch.ones(5))
