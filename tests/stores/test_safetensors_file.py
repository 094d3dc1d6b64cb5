from __future__ import annotations

import json

import pytest
import torch

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix


def write(path, tensors):
    """The format by its description: 8 bytes of length, JSON, numbers."""
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
    header, body = {"__metadata__": {"made": "by hand"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        entry = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        header[name] = entry
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_row_is_read_as_it_was_written(tmp_path, dtype):
    rows = matrix(dtype=dtype)
    store = open_store(write(tmp_path / "g.safetensors", {"ids": torch.ones(11), "grads": rows}), None, "train")
    assert (store.dtype, store.projection) == (dtype, None)
    assert torch.equal(everything(store), rows.double())


def test_several_matrices_are_modules_side_by_side(tmp_path):
    first, second = matrix(seed=1), matrix(num_columns=3, seed=2)
    store = open_store(write(tmp_path / "g.safetensors", {"a": first, "b": second}), None, "train")
    assert torch.equal(everything(store), torch.cat([first, second], 1).double())
    assert torch.equal(everything(store.select(module="b")), second.double())
    assert store.projection == "blocks"


def test_modules_with_different_rows_are_refused(tmp_path):
    path = write(tmp_path / "g.safetensors", {"a": matrix(), "b": matrix(num_rows=3)})
    with pytest.raises(UserError, match="different numbers of rows"):
        open_store(path, None, "train")


def test_a_file_without_a_matrix_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match=r"no two-dimensional tensor.*ids \(4,\)"):
        open_store(write(tmp_path / "g.safetensors", {"ids": torch.ones(4)}), None, "train")


def test_truncated_files_are_refused(tmp_path):
    path = write(tmp_path / "g.safetensors", {"a": matrix()})
    whole = path.read_bytes()
    for length, message in ((len(whole) - 1, "truncated"), (40, "no readable"), (3, "no readable")):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=message):
            open_store(path, None, "train")


@pytest.mark.parametrize("change", [{"shape": [11, 6.0]}, {"shape": [-11, -6]}, {"data_offsets": [-4, 260]}])
def test_sizes_that_are_none_are_refused(tmp_path, change):
    path = write(tmp_path / "g.safetensors", {"a": matrix()})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["a"] |= change
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(UserError, match="no readable"):
        open_store(path, None, "train")


def test_the_library_itself_writes_what_is_read(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    rows = matrix(dtype=torch.bfloat16)
    library.save_file({"grads": rows}, tmp_path / "g.safetensors")
    assert torch.equal(everything(open_store(tmp_path / "g.safetensors", None, "train")), rows.double())
