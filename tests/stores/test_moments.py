from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.foundations.errors import UserError
from common.stores import moments
from common.stores import store as store_module
from common.stores.formats import open_store
from common.stores.moments import check_rows, collect, fold, fold_rows
from tests.stores.cases import matrix, save_npy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 8 * 6 * 4)


def open_rows(tmp_path, rows):
    return open_store(save_npy(tmp_path / "g.npy", rows), None, "train")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_second_moment_and_weighted_sums_are_those_of_the_whole_matrix(tmp_path, dtype):
    rows, weights = matrix(num_rows=23, dtype=dtype), matrix(num_rows=5, num_columns=23, seed=1)
    norms = torch.linspace(1, 2, 23)
    keep = torch.tensor([22, 3, 0, 3])
    found = collect(open_rows(tmp_path, rows).with_norms(norms), weights, keep)
    exact = rows.double() * norms.double()[:, None]
    torch.testing.assert_close(found.second, exact.T @ exact / 23, rtol=1e-14, atol=1e-15)
    assert torch.equal(found.kept, exact[keep])
    torch.testing.assert_close(found.sums, weights.double() @ exact, rtol=1e-14, atol=1e-14)


def test_folding_the_second_moment_is_folding_the_rows():
    for width in (6, 7):
        rows = matrix(num_rows=23, num_columns=width, dtype=torch.float64)
        folded = fold_rows(rows)
        assert folded.shape == (23, 3)
        torch.testing.assert_close(fold(rows.T @ rows), folded.T @ folded)


def test_zero_coarse_and_repeated_rows_are_found(tmp_path):
    rows = matrix(num_rows=23, dtype=torch.float16)
    rows[4], rows[9], rows[17] = 0, rows[2], rows[2]
    rows[6] *= 1e-6
    rows[20] = 0
    report = collect(open_rows(tmp_path, rows)).rows
    assert (report.zero_rows, report.coarse_rows, report.num_duplicates) == ((4, 20), (6,), 2)
    lengths = rows.double().norm(dim=1)
    assert report.longest == pytest.approx(lengths.max().item(), rel=1e-6)
    assert report.shortest == pytest.approx(lengths[lengths > 0].min().item(), rel=1e-6)
    assert check_rows(open_rows(tmp_path, rows)) == report


def test_what_is_coarse_in_float16_is_sound_in_float32(tmp_path):
    report = check_rows(open_rows(tmp_path, matrix() * 1e-6))
    assert report.coarse_rows == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_rounding_of_the_store_is_predicted(tmp_path, dtype, scale):
    """Mean square error over 1.2e6 numbers: 2 % (its standard error is 0.15 %)."""
    exact = matrix(num_rows=2000, num_columns=600, dtype=torch.float64) * scale
    stored = exact.to(dtype)
    measured = (stored.double() - exact).square().mean().item()
    if dtype == torch.float16 and scale < 1:
        assert collect(open_rows(tmp_path, stored)).rounding == pytest.approx(measured, rel=0.02)
    else:
        # mantissas of normal numbers are not quite spread like 1/x
        assert collect(open_rows(tmp_path, stored)).rounding == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_with_row_column_and_file(tmp_path, value):
    rows = matrix(num_rows=23, dtype=torch.float16)
    rows[13, 2] = value
    with pytest.raises(UserError, match=r"row 13 of .*g\.npy holds (nan|-?inf) in column 2.*float16"):
        collect(open_rows(tmp_path, rows))


def test_a_number_whose_square_is_not_finite_is_named_as_what_it_is(tmp_path):
    rows = matrix(num_rows=23, dtype=torch.float64)
    rows[13, 2] = -1e170
    with pytest.raises(UserError, match=r"row 13 of .*g\.npy holds 1e\+170, whose square leaves float64"):
        collect(open_rows(tmp_path, rows))


def test_a_store_of_zeros_is_refused(tmp_path):
    with pytest.raises(UserError, match="every row is zero"):
        collect(open_rows(tmp_path, torch.zeros(5, 6)))


def test_more_columns_than_memory_holds_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"M = 6 columns: M x M matrices need .* --module"):
        collect(open_rows(tmp_path, matrix()))


def test_more_queries_than_memory_holds_are_refused_too(tmp_path, monkeypatch):
    store = open_rows(tmp_path, matrix())
    needed = moments.CHUNKS * moments.CHUNK_BYTES + 8 * (5 * 6**2 + 6 * 6 * 1000)
    monkeypatch.setattr(moments, "_memory", lambda: needed)
    moments.check_memory(store, 1000)
    with pytest.raises(UserError, match=r"1001 queries and sampled rows need .* fewer queries"):
        moments.check_memory(store, 1001)


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
def test_a_folded_sketch_keeps_lengths_like_a_sketch_of_half_the_size(kind):
    """Mean and variance of ‖Pq‖² over 20,000 sketches of m = 8 -> 4; the variance to 6 %, 5 sd or more."""
    generator = np.random.default_rng(0)
    q = np.array([0.5, -0.3, 0.2, 0.6, 0.1, 0.4, -0.3, 0.2])
    q /= np.linalg.norm(q)
    shape = (20_000, 8, 8)
    if kind == "normal":
        sketches = generator.standard_normal(shape) / 8**0.5
    elif kind == "rademacher":
        sketches = generator.choice([-1.0, 1.0], shape) / 8**0.5
    else:
        sketches = np.zeros(shape)
        signs = generator.choice([-1.0, 1.0], (20_000, 8))
        np.put_along_axis(sketches, generator.integers(0, 8, (20_000, 1, 8)), signs[:, None, :], 1)
    rows = torch.from_numpy(sketches @ q)
    squares = fold_rows(rows).square().sum(1)
    # excess kurtosis of an entry: 0, -1 (the sum of two signs, not one), and as a whole -2 for the sjlt
    expected = 2 / 4 * (1 - {"normal": 0, "rademacher": 0.5, "sjlt": 1}[kind] * (q**4).sum())
    spread = squares.std().item() / 20_000**0.5
    assert squares.mean().item() == pytest.approx(1, abs=5 * spread)
    assert squares.var().item() == pytest.approx(expected, rel=0.06)
