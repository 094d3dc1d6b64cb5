from __future__ import annotations

import pytest

from common.foundations.packing import packed


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], [[]]),
        ([3, 4, 3, 1], [[3, 4, 3], [1]]),
        ([11, 1, 1], [[11], [1, 1]]),
        ([1, 11, 12], [[1], [11], [12]]),
        ([10, 10], [[10], [10]]),
    ],
)
def test_groups_are_as_full_as_the_order_allows_and_what_is_too_large_stands_alone(sizes, groups):
    assert packed(iter(sizes), lambda size: size, 10) == groups
