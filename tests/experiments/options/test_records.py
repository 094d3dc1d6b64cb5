from __future__ import annotations

import pytest

from common.experiments.options.records import Grid, log_spaced
from common.foundations.errors import UserError


def make_grid(**changes):
    options = dict(min_m=1, max_m=None, lambda_exp_min=-8, lambda_exp_max=2, lambda_scale="absolute")
    return Grid(**options | changes, ridge_correction=False)


def test_equal_exponents_are_one_ridge():
    assert make_grid(lambda_exp_min=2).ridges(7.0) == [100.0]


def test_ridges_are_the_correctly_rounded_powers_of_ten():
    ridges = make_grid(lambda_exp_min=-300, lambda_exp_max=300).ridges(7.0)
    assert len(ridges) == 601
    assert ridges[0] == 1e-300
    assert ridges[301 + 22] == 1e23
    assert ridges[300 - 3] == 0.001
    assert ridges == sorted(ridges)


def test_relative_ridges_are_multiples_of_the_mean_eigenvalue():
    ridges = make_grid(lambda_exp_min=-1, lambda_exp_max=1, lambda_scale="relative").ridges(2.0**-70)
    assert ridges == [0.1 * 2.0**-70, 2.0**-70, 10 * 2.0**-70]


def test_ridges_in_steps_are_equally_spaced_in_their_logarithm_and_exact_where_exponents_are_integers():
    ridges = make_grid(lambda_exp_min=-3, lambda_exp_max=1, lambda_steps=9).ridges(7.0)
    assert ridges[::2] == [1e-3, 1e-2, 0.1, 1.0, 10.0]
    assert ridges[1::2] == pytest.approx([10**e for e in (-2.5, -1.5, -0.5, 0.5)], rel=1e-15)
    assert make_grid(lambda_exp_min=2, lambda_steps=5).ridges(7.0) == [100.0]
    decades = make_grid(lambda_exp_min=-300, lambda_exp_max=300, lambda_steps=601)
    assert decades.ridges(7.0) == make_grid(lambda_exp_min=-300, lambda_exp_max=300).ridges(7.0)
    assert make_grid(lambda_scale="relative", lambda_steps=11).ridges(0.5) == [10.0**e / 2 for e in range(-8, 3)]


# --- the grid of projection dimensions ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "num_parameters", "used", "left_out"),
    [
        ({}, 10, [1, 2, 4, 8], []),
        ({}, 8, [1, 2, 4], []),
        ({}, 7850, [2**j for j in range(13)], []),
        ({}, 10**7, [2**j for j in range(17)], []),
        (dict(max_m=64), 20, [1, 2, 4, 8, 16], [32, 64]),
        (dict(max_m=16), 16, [1, 2, 4, 8], [16]),
        (dict(min_m=3, max_m=33), 100, [4, 8, 16, 32], []),
        (dict(min_m=4, max_m=4), 5, [4], []),
        ({}, 2, [1], []),
    ],
)
def test_m_runs_over_the_powers_of_two_below_d(options, num_parameters, used, left_out):
    assert make_grid(**options).dimensions(num_parameters) == (used, left_out)


@pytest.mark.parametrize(
    ("options", "num_parameters"),
    [
        (dict(min_m=5, max_m=7), 100),
        (dict(min_m=64, max_m=32), 100),
        (dict(min_m=128), 100),
        (dict(min_m=64, max_m=64), 64),
        ({}, 1),
    ],
)
def test_an_empty_range_of_m_is_a_user_error_with_its_limits(options, num_parameters):
    with pytest.raises(
        UserError, match=rf"--min_m \d+ \.\. --max_m \d+ holds no power of two below the {num_parameters}"
    ):
        make_grid(**options).dimensions(num_parameters)


def test_m_in_steps_is_log_spaced_from_end_to_end_and_below_d():
    grid = make_grid(min_m=32, max_m=500, m_steps=4)
    assert grid.dimensions(10**4) == ([32, 80, 200, 500], [])
    assert grid.dimensions(300) == ([32, 80, 200], [500])
    assert make_grid(min_m=4, m_steps=3).dimensions(100) == ([4, 16, 64], [])  # up to the default largest m
    with pytest.raises(UserError, match=r"--min_m 64 \.\. --max_m 32 holds no m below the 100 parameters"):
        make_grid(min_m=64, max_m=32, m_steps=3).dimensions(100)


def test_neighbours_that_round_to_one_integer_are_one_point():
    assert log_spaced(1, 4, 9) == [1, 2, 3, 4]
    assert log_spaced(7, 7, 2) == [7]
