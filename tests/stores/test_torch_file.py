from __future__ import annotations

import pytest
import torch

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_row_is_read_as_it_was_written(tmp_path, dtype):
    rows = matrix(dtype=dtype)
    torch.save(rows, tmp_path / "all_orig.pt")
    store = open_store(tmp_path / "all_orig.pt", None, "train")
    assert (store.format, store.dtype) == ("torch", dtype)
    assert torch.equal(everything(store), rows.double())


def test_a_view_into_a_larger_tensor_is_read_from_where_it_begins(tmp_path):
    rows = matrix(num_rows=20)
    torch.save(rows[5:9], tmp_path / "part.pt")
    assert torch.equal(everything(open_store(tmp_path / "part.pt", None, "train")), rows[5:9].double())


def test_matrices_of_a_dict_are_modules_and_other_tensors_are_left_out(tmp_path):
    first, second = matrix(seed=1), matrix(num_columns=2, seed=2)
    torch.save({"a": first, "ids": torch.arange(11), "b": second}, tmp_path / "g.pt")
    store = open_store(tmp_path / "g.pt", None, "train")
    assert [m.name for m in store.modules] == ["a", "b"]
    assert torch.equal(everything(store), torch.cat([first, second], 1).double())


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), r"two-dimensional.*tensor \(3,\)"),
        ([torch.ones(3, 3)], "holds a list"),
        (torch.ones(4, 3).T, "not stored row by row"),
        (torch._neg_view(torch.ones(3, 3)), "stored with the other sign"),
        (torch.ones(3, 3, dtype=torch.int64), "int64"),
        (Evil(), "no readable file"),
    ],
)
def test_what_are_no_gradients_is_refused_and_nothing_executed(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "g.pt")
    with pytest.raises(UserError, match=message):
        open_store(tmp_path / "g.pt", None, "train")
    assert "executed" not in capsys.readouterr().out


def test_what_torch_says_of_a_pickled_module_has_no_colours(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match=r"is no readable file of torch\.save") as raised:
        open_store(tmp_path / "module.pt", None, "train")
    assert str(raised.value).isprintable()


def test_the_format_of_before_2020_and_truncated_files_are_refused(tmp_path):
    torch.save(matrix(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="before 2020"):
        open_store(tmp_path / "old.pt", None, "train")
    torch.save(matrix(), tmp_path / "g.pt")
    (tmp_path / "g.pt").write_bytes((tmp_path / "g.pt").read_bytes()[:900])
    with pytest.raises(UserError, match="truncated"):
        open_store(tmp_path / "g.pt", None, "train")
