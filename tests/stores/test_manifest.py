from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.foundations.errors import UserError
from common.stores.manifest import FEWEST_ROWS, MOST_RANGES, NUMPY_NAMES, npy_header, read_record, rows_a_range
from tests.stores.cases import identity


@pytest.mark.parametrize("num_rows", [1, 255, 256, 257, 4500, 10**6, 10**9])
@pytest.mark.parametrize("rows_at_once", [1, 32, 1000])
def test_ranges_cover_every_row_once_and_are_nearly_equal(num_rows, rows_at_once):
    size = rows_a_range(num_rows, rows_at_once)
    count = -(-num_rows // size)
    assert count <= MOST_RANGES
    assert (count - 1) * size < num_rows <= count * size
    if num_rows <= 10**6:
        spans = replace(identity(), n=num_rows, rows_a_range=size).ranges
        assert [row for span in spans for row in span] == list(range(num_rows))
    assert size >= min(num_rows, FEWEST_ROWS) / 2


@pytest.mark.parametrize("name", NUMPY_NAMES)
def test_numpy_reads_the_header(tmp_path, name):
    path = tmp_path / "a.npy"
    path.write_bytes(npy_header(NUMPY_NAMES[name], (3, 2)) + bytes(3 * 2 * (4 if name == "float32" else 2)))
    found = np.load(path)
    assert found.shape == (3, 2)
    assert found.dtype.itemsize == (4 if name == "float32" else 2)


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    assert read_record(tmp_path / "manifest.json") is None
    for text in ("{", "{}", "[1]"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json .*choose another folder"):
            read_record(tmp_path / "manifest.json")
