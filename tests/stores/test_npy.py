from __future__ import annotations

import numpy as np
import pytest
import torch

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix, save_npy


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["grads.npy", "grads.mmap"])
def test_every_row_is_read_as_it_was_written(tmp_path, dtype, name):
    rows = matrix(dtype=dtype)
    store = open_store(save_npy(tmp_path / name, rows), None, "train")
    assert (store.format, store.num_rows, store.num_columns, store.dtype) == ("npy", 11, 6, dtype)
    assert torch.equal(everything(store), rows.double())


def test_a_truncated_file_is_named_with_both_sizes(tmp_path):
    path = save_npy(tmp_path / "grads.npy", matrix())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"grads\.npy is truncated: 11 x 6 numbers of float32 need 392 bytes.* 391"):
        open_store(path, None, "train")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((2, 3, 4)), "two dimensions"),
        (np.zeros((3, 4), order="F"), "column by column"),
        (np.zeros((3, 4), dtype=">f4"), "big-endian"),
        (np.zeros((3, 4), dtype=np.int64), "int64.*float16, bfloat16, float32, float64"),
        (np.zeros((0, 4)), "0 x 4"),
    ],
)
def test_what_are_no_gradients_is_refused_in_one_line(tmp_path, array, message):
    np.save(tmp_path / "grads.npy", array)
    with pytest.raises(UserError, match=message) as refusal:
        open_store(tmp_path / "grads.npy", None, "train")
    assert "\n" not in str(refusal.value)


def test_a_damaged_header_is_refused(tmp_path):
    (tmp_path / "grads.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00nonsense")
    with pytest.raises(UserError, match=r"no readable .npy file"):
        open_store(tmp_path / "grads.npy", None, "train")
