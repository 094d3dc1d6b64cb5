"""A grid of λ that misses the spectrum is said in one line, with exponents under which it would not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from common.experiments.options.records import Grid
from common.experiments.preparing.ridges import describe_miss, fitting, mean_eigenvalue, resolved_ridges
from common.foundations.errors import UserError
from common.theory.spectrum import ExactSpectrum, effective_dimension

GRID = Grid(min_m=1, max_m=None, lambda_exp_min=-8, lambda_exp_max=2, lambda_scale="absolute", ridge_correction=False)
DECAY = torch.cat([10.0 ** -torch.linspace(0, 6, 40, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)])


def spectrum_at(scale: float) -> ExactSpectrum:
    return ExactSpectrum(scale * DECAY)


def dimensions(spectrum: ExactSpectrum, ridges: list[float]) -> list[float]:
    return effective_dimension(spectrum, torch.tensor(ridges, dtype=torch.float64)).tolist()


def named_exponents(text: str) -> tuple[int, int]:
    low, high = re.search(r"--lambda_exp_min (-?\d+) --lambda_exp_max (-?\d+) would fit", text).groups()
    return int(low), int(high)


def test_the_mean_eigenvalue_is_that_of_the_range():
    assert mean_eigenvalue(spectrum_at(3.0)) == pytest.approx((3 * DECAY).sum().item() / 40)


def test_a_grid_that_reaches_the_spectrum_is_not_mentioned():
    spectrum = spectrum_at(1.0)
    ridges, left_out = resolved_ridges(GRID, spectrum)
    assert (ridges, left_out) == (GRID.ridges(1.0), [])
    assert describe_miss(GRID, spectrum, dimensions(spectrum, ridges)) is None


@pytest.mark.parametrize("scale", [1e-24, 1e-14, 1e12, 1e30])
def test_the_exponents_that_are_named_fit(scale):
    """Losses times 1e-12 or 1e15: the grid lies above all eigenvalues, or below rounding of the largest."""
    spectrum = spectrum_at(scale)
    low, high = named_exponents(fitting(GRID, spectrum))
    grid = replace(GRID, lambda_exp_min=low, lambda_exp_max=high)
    ridges, left_out = resolved_ridges(grid, spectrum)
    found = dimensions(spectrum, ridges)
    assert left_out == []
    assert describe_miss(grid, spectrum, found) is None
    assert min(found) >= 1
    assert max(found) > 0.99 * 40
    assert high - low >= 4  # six decades of eigenvalues


def test_a_grid_above_the_spectrum_is_said():
    spectrum = spectrum_at(1e-24)
    text = describe_miss(GRID, spectrum, dimensions(spectrum, GRID.ridges(1.0)))
    assert text.startswith("the grid of λ misses the spectrum of F: d_λ is ")
    assert " at most; --lambda_exp_min -3" in text
    assert text.endswith("would fit, or --lambda_scale relative")


def test_a_grid_below_the_spectrum_is_said():
    spectrum = spectrum_at(1e13)
    ridges, left_out = resolved_ridges(GRID, spectrum)
    assert len(left_out) == 10
    text = describe_miss(GRID, spectrum, dimensions(spectrum, ridges))
    assert " at least, of the rank 40; " in text


def test_a_grid_below_rounding_is_refused_with_exponents_that_fit():
    with pytest.raises(UserError, match=r"--lambda_exp_max 2: every λ is below .* = 1e-12 tr F.*would fit") as caught:
        resolved_ridges(GRID, spectrum_at(1e30))
    assert "\n" not in str(caught.value)
    assert named_exponents(str(caught.value)) == named_exponents(fitting(GRID, spectrum_at(1e30)))


@pytest.mark.parametrize("scale", [1e-300, 1e-24, 1.0, 1e200])
def test_a_relative_grid_fits_at_every_scale_with_the_same_effective_dimensions(scale):
    grid, spectrum = replace(GRID, lambda_scale="relative"), spectrum_at(scale)
    ridges, left_out = resolved_ridges(grid, spectrum)
    assert left_out == []
    assert describe_miss(grid, spectrum, dimensions(spectrum, ridges)) is None
    expected = dimensions(spectrum_at(1.0), grid.ridges(mean_eigenvalue(spectrum_at(1.0))))
    assert dimensions(spectrum, ridges) == pytest.approx(expected, rel=1e-6)


def test_exponents_of_a_relative_grid_are_relative():
    grid = replace(GRID, lambda_scale="relative", lambda_exp_min=20, lambda_exp_max=21)
    spectrum = spectrum_at(1e-24)
    text = describe_miss(grid, spectrum, dimensions(spectrum, grid.ridges(mean_eigenvalue(spectrum))))
    low, high = named_exponents(text)
    assert -9 < low < high < 3
    assert text.endswith("would fit")


def test_where_no_ridge_has_the_dimension_asked_for_that_is_said():
    assert fitting(GRID, spectrum_at(1.0), smallest=41.0) == "no λ has a d_λ above 40: choose a smaller one"
    few = ExactSpectrum(torch.ones(5, dtype=torch.float64))  # d_λ of any λ > 0 is below 5
    assert fitting(GRID, few, smallest=5.0) == "no λ has a d_λ above 5: choose a smaller one"
    assert named_exponents(fitting(GRID, spectrum_at(1.0), smallest=30.0))[1] <= -4


def test_a_spectrum_of_one_eigenvalue_has_a_grid_that_fits():
    spectrum = ExactSpectrum(torch.tensor([1e-20], dtype=torch.float64))
    low, high = named_exponents(fitting(GRID, spectrum))
    assert low <= high <= -20
    assert dimensions(spectrum, [10.0**high])[0] >= 0.5
