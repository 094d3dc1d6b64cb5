"""A constant added to all rows of a store against what chance gives the same direction."""

from __future__ import annotations

import pytest
import torch

from common.theory.added_constant import constant_by_chance
from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis
from tests import reference_theory as reference

SPECTRA = {
    "power": 1 / torch.arange(1, 301).double() ** 2,
    "flat": torch.ones(300, dtype=torch.float64),
    "one": 1 + 1e4 * (torch.arange(300) == 0).double(),
}


def chance(second, solves):
    t, basis = eigenbasis(second)
    spectrum = SketchedSpectrum(t)
    return constant_by_chance(spectrum, basis, spectrum.ridge_of_solve(solves * second.diagonal().mean()))


@pytest.mark.parametrize("m", [16, 64])
@pytest.mark.parametrize("shape", SPECTRA)
@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
def test_sketches_have_as_much_in_common_as_chance_allows_and_more_with_a_constant(m, shape, kind):
    """10 sketches: P[any bound < 1e-3] < 0.02; a constant as large as the trace is found at once."""
    solves = torch.tensor([1e-2, 1.0, 1e2], dtype=torch.float64)
    for seed in range(10):
        sketch = reference.sketch_matrix(kind, m, 300, torch.Generator().manual_seed(seed))
        second = (sketch * SPECTRA[shape]) @ sketch.T
        assert (chance(second, solves) > 1e-3).all()
        constant = second.diagonal().mean() * torch.ones(m, m)
        assert chance(second + 20 * constant, solves).min() < 1e-6


def test_the_bound_is_one_of_the_share_of_rotations_that_have_as_much():
    """The chance of a weighted mean of squares by 200,000 random directions, about one in a hundred."""
    t, solve = SPECTRA["power"][:40], 0.05
    spectrum = SketchedSpectrum(t)
    share = t / (t + solve)
    directions = torch.randn(200_000, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    drawn = (directions @ share) / directions.sum(1)
    level = drawn.quantile(0.99)
    # a direction u that has exactly so much: a mixture of the first eigenvector and one of the last
    first, last = share[0], share[-1]
    angle = ((level - last) / (first - last)).sqrt()
    u = torch.zeros(40, dtype=torch.float64)
    u[0], u[-1] = angle, (1 - angle**2).sqrt()
    reflected = u - torch.ones(40, dtype=torch.float64) / 40**0.5
    basis = torch.eye(40, dtype=torch.float64) - 2 * torch.outer(reflected, reflected) / reflected.square().sum()
    bound = constant_by_chance(spectrum, basis, spectrum.ridge_of_solve(torch.tensor([solve])).double()).item()
    assert 0.01 < bound < 0.2


def test_columns_that_are_zero_do_not_count():
    sketch = reference.sketch_matrix("normal", 32, 300, torch.Generator().manual_seed(3))
    holed = torch.cat([sketch[:5], torch.zeros(7, 300), sketch[5:]])
    (t, own), (_, among) = (eigenbasis((rows * SPECTRA["power"]) @ rows.T) for rows in (sketch, holed))
    assert among.shape == (39, 32)
    spectrum = SketchedSpectrum(t)
    ridges = spectrum.ridge_of_solve(torch.tensor([1e-2, 1.0], dtype=torch.float64) * t.mean())
    expected, found = (constant_by_chance(spectrum, basis, ridges) for basis in (own, among))
    torch.testing.assert_close(found, expected)
