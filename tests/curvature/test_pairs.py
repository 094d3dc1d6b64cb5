from __future__ import annotations

import pytest
import torch

from common.curvature.coordinates import EKFAC, KFAC, gather
from common.curvature.pairs import pairwise
from common.curvature.scores import cross_influence
from tests.curvature.test_factors import CPU, fitted
from tests.layer_cases import make_case


@pytest.mark.parametrize("curvature", [KFAC, EKFAC])
def test_scores_of_all_pairs_are_those_of_subsets_of_one_sample(curvature):
    found, layers, exact = fitted(*make_case("transformer_every_token"))
    count = len(exact)
    queries, every = exact.subset(slice(2)), torch.eye(count, dtype=torch.float64)
    train = [layers.batches(exact, 2, CPU) for _ in range(2)]
    parts = gather(list(found.values()), train[0], layers.batches(queries, 2, CPU), every, torch.zeros(2))
    ridges = [10.0 ** -(number % 3) for number in range(len(parts))]
    expected = sum(
        cross_influence(part.eigenvalues[curvature], part.subset_sums, part.queries, torch.tensor([ridge]).double())[0]
        for part, ridge in zip(parts, ridges, strict=True)
    )
    scores = pairwise(parts, curvature, train[1], count, ridges)
    assert (scores - expected).norm() < 1e-6 * expected.norm()
