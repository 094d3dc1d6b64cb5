from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.foundations.errors import UserError
from common.stores.manifest import MANIFEST, NORMS, PROJECTED
from common.stores.writer import StoreWriter
from tests.stores.cases import identity, matrix, write_part

ROWS = matrix()
LENGTHS = torch.logspace(-12, 2, 11, dtype=torch.float64)


def contents(folder):
    return [(folder / name).read_bytes() for name in (PROJECTED, NORMS)]


def test_plain_numpy_maps_a_finished_store(tmp_path):
    write_part(tmp_path, identity(), ROWS, LENGTHS)
    projected = np.load(tmp_path / "projected.npy", mmap_mode="r")
    assert projected.dtype == np.float32
    np.testing.assert_array_equal(projected, ROWS.numpy())
    np.testing.assert_array_equal(np.load(tmp_path / "norms.npy", mmap_mode="r"), LENGTHS.numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, NORMS, PROJECTED]


def test_bfloat16_is_stored_as_ml_dtypes_does(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    write_part(tmp_path / "ours", identity(dtype="bfloat16"), ROWS, LENGTHS)
    np.save(tmp_path / "theirs.npy", ROWS.numpy().astype(ml_dtypes.bfloat16))
    assert (tmp_path / "ours" / PROJECTED).read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    found = np.load(tmp_path / "ours" / PROJECTED, mmap_mode="r").view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.astype(np.float32), ROWS.bfloat16().float().numpy())


def test_unit_rows_keep_in_float16_what_is_too_short_for_it(tmp_path):
    rows = (ROWS.double() * LENGTHS[:, None]).float()
    write_part(tmp_path / "unit", identity(dtype="float16", scale="unit"), rows, LENGTHS)
    write_part(tmp_path / "none", identity(dtype="float16"), rows, LENGTHS)
    found = {scale: np.load(tmp_path / scale / PROJECTED).astype(float) for scale in ("unit", "none")}
    np.testing.assert_allclose(found["unit"], ROWS.numpy(), rtol=1e-3)
    assert not found["none"][0].any()


def test_a_zero_gradient_is_a_zero_row_of_a_store_of_unit_rows(tmp_path):
    rows, lengths = ROWS.clone(), LENGTHS.clone()
    rows[3], lengths[3] = 0, 0
    write_part(tmp_path, identity(scale="unit"), rows, lengths)
    assert not np.load(tmp_path / PROJECTED)[3].any()


def test_a_number_beyond_the_dtype_names_the_sample_and_writes_nothing_of_its_range(tmp_path):
    writer = StoreWriter(tmp_path, identity(dtype="float16"))
    writer.begin()
    rows = ROWS.clone()
    rows[5] *= 1e6
    span = writer.identity.ranges[1]
    with pytest.raises(UserError, match=r"train sample 5: .* is beyond float16; --scale unit"):
        writer.write(span, rows[span.start : span.stop], LENGTHS[span.start : span.stop])
    assert writer.finished([span]) == []


def test_a_range_is_absent_until_it_is_whole_and_then_survives(tmp_path):
    first = StoreWriter(tmp_path, identity())
    first.begin()
    spans = first.identity.ranges
    first.write(spans[1], ROWS[4:8], LENGTHS[4:8])
    # cut off between the rows and the note that they are there
    first.write(spans[0], ROWS[:4], LENGTHS[:4])
    (tmp_path / "ranges" / "0.json").unlink()
    second = StoreWriter(tmp_path, identity())
    second.begin()
    assert second.finished(spans) == [spans[1]]
    assert not second.is_finished()
    for span in (spans[0], spans[2]):
        second.write(span, ROWS[span.start : span.stop], LENGTHS[span.start : span.stop])
    second.finish({})
    write_part(tmp_path / "at once", identity(), ROWS, LENGTHS)
    assert contents(tmp_path) == contents(tmp_path / "at once")


def test_a_part_that_lacks_a_range_is_not_finished(tmp_path):
    writer = StoreWriter(tmp_path, identity())
    writer.begin()
    with pytest.raises(ValueError, match="have not been written"):
        writer.finish({})


@pytest.mark.parametrize("name", [PROJECTED, NORMS])
def test_damaged_ranges_of_a_finished_store_are_found_and_made_again(tmp_path, name):
    writer = write_part(tmp_path, identity(), ROWS, LENGTHS)
    whole = contents(tmp_path)
    with open(tmp_path / name, "r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"xyz")
    spans = writer.identity.ranges
    assert writer.finished(spans) == spans[:-1]
    writer.reopen()
    assert not writer.is_finished()
    writer.write(spans[-1], ROWS[8:], LENGTHS[8:])
    writer.finish({})
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"checkpoint": "other"},
        {"kind": "normal"},
        {"data": "other"},
        {"dtype": "float16"},
        {"device": "cuda"},
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_rows_of_anything_else_are_refused_and_left_alone(tmp_path, change, finished):
    writer = write_part(tmp_path, identity(), ROWS, LENGTHS)
    if not finished:
        writer.reopen()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npy*")}
    (name,) = change
    with pytest.raises(UserError, match=rf"store of something else: {name} was .*choose another --store"):
        StoreWriter(tmp_path, replace(identity(), **change)).begin()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npy*")} == before


def test_another_loss_of_the_same_weights_is_refused_and_rounding_is_not(tmp_path):
    """A user's own checkpoint does not change with the loss."""
    StoreWriter(tmp_path, identity(losses=(1.0, 0.0, 2.0))).begin()
    StoreWriter(tmp_path, identity(losses=(1.0001, 1e-5, 2.0))).begin()
    with pytest.raises(UserError, match="something else: the loss, or what the model does"):
        StoreWriter(tmp_path, identity(losses=(1.0, 0.0, 2.1))).begin()


def test_a_store_that_does_not_know_its_losses_goes_on(tmp_path):
    StoreWriter(tmp_path, identity()).begin()
    StoreWriter(tmp_path, identity(losses=(1.0,))).begin()


def test_a_store_goes_on_with_the_threads_it_was_begun_with(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        StoreWriter(tmp_path, identity()).begin()
        torch.set_num_threads(1)
        assert StoreWriter(tmp_path, identity()).threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_manifest_says_what_made_the_rows(tmp_path):
    write_part(tmp_path, identity(), ROWS, LENGTHS)
    record = json.loads((tmp_path / MANIFEST).read_text())
    assert {name: record[name] for name in ("kind", "m", "seed", "n", "d", "dtype")} == {
        "kind": "sjlt", "m": 6, "seed": 1, "n": 11, "d": 40, "dtype": "float32",
    }  # fmt: skip
    assert [span[:2] for span in record["ranges"]] == [[0, 4], [4, 8], [8, 11]]
