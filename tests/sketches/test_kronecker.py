from __future__ import annotations

import pytest
import torch
from scipy.stats import norm

from common.sketches.kronecker import KroneckerSketch
from common.sketches.kronecker_sizes import fixed_sizes
from tests.reference_factored import columns_of, flat, kronecker_matrix, lengths_of

PARAMETERS = flat((5, 7), (5, 1), (3, 20), (9, 4), (4, 1))
FALSE_ALARM = 1e-4
FLOAT32 = 1e-5


def fixed(parameters, m):
    return fixed_sizes(parameters, cols=4, rows=3)


def test_fixed_ranks_give_every_layer_the_same_sides_where_it_has_them():
    sketch = KroneckerSketch(PARAMETERS, 99, 5, 0, fixed)
    assert sketch.size(99) == sketch.width == 3 * (3 * 4) + 9
    torch.testing.assert_close(columns_of(sketch, 99), kronecker_matrix(sketch, 99), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("max_m", [12, 32])
def test_lengths_are_right_on_average_with_the_variance_of_two_factors(max_m):
    count, parameters = 2000, flat((6, 8))
    sizes = KroneckerSketch(parameters, max_m, 0, 0)._sizes(parameters, 12)
    ((b, a),) = sizes.sides
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(6, generator=generator)[:, None] * torch.randn(8, generator=generator)
    g = (g / g.norm()).flatten().double()
    lengths = lengths_of(lambda trial: KroneckerSketch(parameters, max_m, 3, trial), g, 12, count)
    variance = (1 + 2 / a) * (1 + 2 / b) - 1
    assert abs(lengths.mean() - 1) < norm.isf(FALSE_ALARM / 2) * (variance / count) ** 0.5
    squares = (lengths - 1).square()
    assert abs(squares.mean() - variance) < norm.isf(FALSE_ALARM / 2) * squares.std() / count**0.5
