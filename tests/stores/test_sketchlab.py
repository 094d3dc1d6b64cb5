from __future__ import annotations

import json
import shutil

import pytest
import torch

from common.foundations.errors import UserError
from common.foundations.storage import write_json
from common.stores.formats import open_store
from common.stores.manifest import MANIFEST, NORMS
from common.stores.writer import StoreWriter
from tests.experiments.audit.cases import audit, options
from tests.stores.cases import everything, identity, matrix, write_part

ROWS, LENGTHS = matrix(), torch.logspace(-10, 1, 11, dtype=torch.float64)


@pytest.fixture
def store(tmp_path):
    write_part(tmp_path / "train", identity(scale="unit"), (ROWS * LENGTHS[:, None]).float(), LENGTHS)
    write_part(tmp_path / "test", identity(part="test", data="other"), ROWS, LENGTHS)
    return tmp_path


def test_a_store_of_unit_rows_is_read_with_their_norms(store):
    found = open_store(store / "train", None, "train")
    assert (found.format, found.projection, found.num_rows) == ("sketchlab", "sjlt", 11)
    torch.testing.assert_close(everything(found), ROWS.double() * LENGTHS[:, None], rtol=1e-6, atol=0)
    chosen = found.select(rows=slice(2, 9, 3))
    torch.testing.assert_close(everything(chosen), (ROWS.double() * LENGTHS[:, None])[2:9:3], rtol=1e-6, atol=0)


def test_rows_that_are_not_scaled_are_read_as_they_are(store):
    torch.testing.assert_close(everything(open_store(store / "test", None, "queries")), ROWS.double())


def test_the_folder_of_both_parts_serves_training_rows_and_queries(store):
    assert open_store(store, None, "train").norms is not None
    assert open_store(store, None, "queries").norms is None


def test_an_unfinished_part_is_refused_with_what_completes_it(tmp_path):
    StoreWriter(tmp_path, identity()).begin()
    with pytest.raises(UserError, match="unfinished: the same command"):
        open_store(tmp_path, None, "train")


def test_an_array_that_is_missing_is_named(store):
    (store / "train" / NORMS).unlink()
    with pytest.raises(UserError, match=r"norms\.npy is missing"):
        open_store(store / "train", None, "train")


def test_a_truncated_store_is_refused(store):
    path = store / "test" / "projected.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated"):
        open_store(store / "test", None, "queries")


@pytest.mark.parametrize("change", [{"seed": 3}, {"checkpoint": "other"}, {"kind": "normal"}])
def test_queries_of_another_projection_or_model_are_refused(store, change):
    shutil.rmtree(store / "test")
    write_part(store / "test", identity(part="test", **change), ROWS, LENGTHS)
    with pytest.raises(UserError, match=f"not of one model and one projection: {next(iter(change))} was"):
        audit(options(store / "train", store / "test"))


def test_norms_are_not_given_twice(store, tmp_path):
    with pytest.raises(UserError, match="has norms of its own"):
        audit(options(store / "train", store / "test", norms=tmp_path / "other.npy"))


def test_a_manifest_that_lacks_something_is_named(store):
    path = store / "train" / MANIFEST
    path.write_text(path.read_text().replace('"kind"', '"king"'))
    with pytest.raises(UserError, match=r"not what project_gradients\.py writes"):
        open_store(store / "train", None, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 3}, r"projected\.npy does not hold the 11 rows"),
        ({"n": 10}, r"projected\.npy does not hold the 10 rows"),
        ({"dtype": "bfloat16"}, "does not hold the 11 rows"),
        ({"kind": "kroneker"}, "kind kroneker"),
        ({"scale": "units"}, "scale units"),
        ({"threads": None}, "is not what project_gradients.py writes"),
        ({"ranges": [[0, 11]]}, "is not what project_gradients.py writes"),
        ({"modules": [{"name": "a", "start": 0, "stop": 99}]}, "modules beyond the 6 columns"),
    ],
)
def test_a_manifest_that_was_edited_is_refused_where_it_contradicts_the_arrays(store, change, message):
    """Half the columns, or fewer rows, would be read without a word as other numbers."""
    path = store / "test" / MANIFEST
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(UserError, match=message):
        open_store(store / "test", None, "queries")


def test_norms_that_are_truncated_are_refused(store):
    path = store / "train" / NORMS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"norms\.npy is truncated"):
        open_store(store / "train", None, "train")
