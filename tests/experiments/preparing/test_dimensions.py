from __future__ import annotations

import pytest
from torch import nn

from common.experiments.options.records import Grid, SketchOptions
from common.experiments.preparing.dimensions import Dimensions, sweep_dimensions
from common.foundations.errors import UserError

MODEL = nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 3))  # d = 68; three blocks: two matrices, the biases


def asked(kind, min_m=1, max_m=128, ranks=None):
    grid = Grid(min_m, max_m, -2, 0, "absolute", False)
    return sweep_dimensions(grid, SketchOptions(kind, False, 1, 1, 0, ranks), MODEL)


def test_dimensions_from_d_on_are_left_out():
    assert asked("sjlt") == Dimensions([1, 2, 4, 8, 16, 32, 64], [128], [], 1)


def test_kronecker_leaves_out_what_is_less_than_one_number_a_block():
    assert asked("kronecker") == Dimensions([4, 8, 16, 32, 64], [128], [1, 2], 3)


def test_kronecker_without_a_dimension_left_is_refused():
    with pytest.raises(UserError, match="--max_m 2: kronecker needs at least one number for each of 3 blocks"):
        asked("kronecker", max_m=2)


def test_fixed_ranks_decide_the_only_dimension():
    assert asked("kronecker", ranks=(3, 2)).used == [3 * 2 + 3 * 2 + 4]


def test_ranks_that_leave_nothing_out_are_refused():
    with pytest.raises(UserError, match="--kronecker_ranks 9,9 makes 68 numbers of 68 parameters; it must make fewer"):
        asked("kronecker", ranks=(9, 9))
