from __future__ import annotations

import pytest

from common.sketches.kronecker_sizes import fixed_sizes, shared_sizes, smallest_m
from tests.reference_factored import flat

MLP = flat((128, 784), (128, 1), (64, 128), (64, 1), (10, 64), (10, 1))
MANY = flat(*[(16, 64), (16, 1)] * 12, (300, 16))


@pytest.mark.parametrize("parameters", [MLP, MANY, flat((7, 3)), flat((7, 1)), flat((2, 500), (3, 3))])
def test_sizes_spend_at_most_m_and_none_shrinks_as_m_grows(parameters):
    before = None
    for m in range(smallest_m(parameters), 3000, 7):
        sizes = shared_sizes(parameters, m)
        assert sizes.total <= m
        flattened = [*(side for pair in sizes.sides for side in pair), sizes.vectors]
        assert before is None or all(now >= then for now, then in zip(flattened, before, strict=True))
        before = flattened


@pytest.mark.parametrize("m", [256, 1024, 4096])
def test_most_of_m_is_used(m):
    assert shared_sizes(MLP, m).total > 0.85 * m


def test_larger_parameters_get_more_in_proportion_to_the_root_of_their_entries():
    sizes = shared_sizes(MLP, 1024)
    first, second, _ = (a * b for a, b in sizes.sides)
    assert first / second == pytest.approx((784 * 128 / (128 * 64)) ** 0.5, rel=0.15)


def test_parameters_with_fewer_entries_than_their_share_stay_whole():
    parameters = flat((2, 3), (50, 60), (4, 1))
    assert shared_sizes(parameters, 900).sides[0] == (2, 3)
    assert shared_sizes(parameters, 900).vectors == 4


def test_fewer_numbers_than_blocks_are_refused():
    assert smallest_m(MANY) == 14
    with pytest.raises(ValueError, match="m = 13 is not enough for 14 blocks"):
        shared_sizes(MANY, 13)


def test_fixed_sizes_are_those_asked_for_but_for_shorter_sides():
    sizes = fixed_sizes(MLP, cols=20, rows=32)
    assert sizes.sides == ((32, 20), (32, 20), (10, 20))
    assert sizes.vectors == 202
