"""Uneven columns: chance alone is not called so, and what a sparse P adds is predicted from its buckets."""

from __future__ import annotations

import pytest
import torch

from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis
from common.theory.uneven_columns import MOST_UNEVEN, unevenness
from tests import reference_theory as reference

M = 64


def found(sketch, eigenvalues, share):
    """Return e where d_μ is a share of the columns, for F diagonal."""
    t, basis = eigenbasis((sketch * eigenvalues) @ sketch.T)
    spectrum = SketchedSpectrum(t)
    solves = torch.logspace(-6, 4, 200, dtype=torch.float64)
    ridges = spectrum.ridge_of_solve(solves)
    nearest = (spectrum.sums(ridges).first / len(sketch) - share).abs().argmin()
    return unevenness(spectrum, basis, ridges[nearest, None]).item()


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
@pytest.mark.parametrize("shape", ["power", "flat", "one"])
def test_chance_alone_is_not_called_uneven(kind, shape):
    """18 sketches of each kind and spectrum, at three λ."""
    scales = {
        "power": 1 / torch.arange(1, 401) ** 2,
        "flat": torch.ones(400),
        "one": 1 + 1e4 * (torch.arange(400) == 0),
    }
    for m in (16, M):
        for seed in range(9):
            sketch = reference.sketch_matrix(kind, m, 400, torch.Generator().manual_seed(seed))
            for share in (0.2, 0.5, 0.85):
                assert found(sketch, scales[shape].double(), share) <= MOST_UNEVEN


@pytest.mark.parametrize("a_bucket", [4, 16, 64])
def test_buckets_of_equal_columns_are_as_uneven_as_their_counts(a_bucket):
    """F = I: a bucket of N columns has w = 1/(N + κ), whatever the others have."""
    d = a_bucket * M
    sketch = reference.sketch_matrix("sjlt", M, d, torch.Generator().manual_seed(1))
    sketch = sketch[sketch.any(1)]
    counts = sketch.square().sum(1)
    t, basis = eigenbasis(sketch @ sketch.T)
    spectrum = SketchedSpectrum(t)
    solve = torch.tensor([0.2 * a_bucket, 5.0 * a_bucket], dtype=torch.float64)
    w = 1 / (counts[:, None] + solve)
    expected = w.var(0, correction=0) / w.mean(0).square() * (1 - 2 / (len(counts) + 2))  # less what chance has
    torch.testing.assert_close(unevenness(spectrum, basis, spectrum.ridge_of_solve(solve)), expected)


def test_a_ridge_that_is_not_resolved_has_no_unevenness():
    sketch = reference.sketch_matrix("normal", M, 400, torch.Generator().manual_seed(1))
    t, basis = eigenbasis(sketch @ sketch.T)
    spectrum = SketchedSpectrum(t)
    assert unevenness(spectrum, basis, torch.tensor([spectrum.smallest_ridge / 2])).isnan().all()


def test_columns_that_are_zero_do_not_count():
    sketch = reference.sketch_matrix("sjlt", M, 4 * M, torch.Generator().manual_seed(1))
    sketch = sketch[sketch.any(1)]
    holed = torch.cat([sketch[:5], torch.zeros(7, 4 * M), sketch[5:]])
    alone, among = (eigenbasis(rows @ rows.T) for rows in (sketch, holed))
    assert among[1].shape == (len(sketch) + 7, len(sketch))
    ridges = SketchedSpectrum(alone[0]).ridge_of_solve(torch.tensor([0.5, 5.0], dtype=torch.float64))
    expected, found_among = (unevenness(SketchedSpectrum(t), basis, ridges) for t, basis in (alone, among))
    assert (expected > 0).all()
    torch.testing.assert_close(found_among, expected)
