from __future__ import annotations

import pytest
import torch
from scipy.stats import norm

from common.sketches import tensorsketch
from common.sketches.tensorsketch import TensorSketch
from tests.reference_factored import flat, flat_gradients, lengths_of, made_up_shares, tensorsketch_matrix

PARAMETERS = flat((5, 7), (5, 1), (3, 20), (9, 4), (4, 1))
FALSE_ALARM = 1e-4
FLOAT32 = 1e-5


@pytest.mark.parametrize("cost", [200, 1e-9, 1e9], ids=["chosen", "transforms", "products"])
@pytest.mark.parametrize("positions", [1, 6])
def test_every_route_in_any_chunks_sketches_factors_as_their_products_are(monkeypatch, cost, positions):
    monkeypatch.setattr(tensorsketch, "POSITION_COST", cost)
    monkeypatch.setattr(tensorsketch, "CHUNK_NUMBERS", 64)
    sketch = TensorSketch(PARAMETERS, 32, 5, 1)
    shares = made_up_shares(PARAMETERS, 4, positions, torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 1e-3, 0.0, 1e4], dtype=torch.float64)
    expected = scales[:, None] * flat_gradients(shares) @ tensorsketch_matrix(sketch, 16).T
    found = sketch.reduce(sketch.rows(shares, scales), 16).double()
    for row, exact in zip(found, expected, strict=True):
        assert (row - exact).norm() <= FLOAT32 * exact.norm()


@pytest.mark.parametrize(("m", "max_m"), [(8, 8), (16, 128)])
def test_inner_products_are_right_on_average_with_the_variance_of_a_sparse_sketch(m, max_m):
    # a rank-one gradient has the largest variance under independent buckets: three times this one
    count, parameters = 2000, flat((6, 8))
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(6, generator=generator)[:, None] * torch.randn(8, generator=generator)
    g = (g / g.norm()).flatten().double()
    lengths = lengths_of(lambda trial: TensorSketch(parameters, max_m, 3, trial), g, m, count)
    variance = 2 / m * (1 - g.pow(4).sum().item())
    assert abs(lengths.mean() - 1) < norm.isf(FALSE_ALARM / 2) * (variance / count) ** 0.5
    # pairs of entries of one row or column never meet in L buckets, others do a little more often than 1/m
    assert lengths.var() < 1.25 * variance


@pytest.mark.parametrize("max_m", [16, 64])
def test_no_two_entries_of_a_row_or_a_column_meet_before_the_last_hashing(max_m):
    sketch = TensorSketch(flat((6, 13)), max_m, 0, 0)
    rows, cols = sketch._sides["p0"]
    buckets = (rows.buckets[:, None] + cols.buckets) % sketch.length
    assert all(len(row.unique()) == 13 for row in buckets)
    assert all(len(col.unique()) == 6 for col in buckets.T)
