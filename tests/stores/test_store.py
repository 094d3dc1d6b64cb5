from __future__ import annotations

import pytest
import torch

from common.foundations.errors import UserError
from common.stores import store as store_module
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix, save_npy


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 8 * 6 * 4)  # four rows of six numbers


@pytest.mark.parametrize("rows", [slice(None), slice(3, 9), slice(2, None, 3), slice(-4, None)])
def test_selected_rows_are_those_of_python_slices(tmp_path, small_chunks, rows):
    numbers = matrix(num_rows=23)
    store = open_store(save_npy(tmp_path / "g.npy", numbers), None, "train").select(rows=rows)
    assert torch.equal(everything(store), numbers[rows].double())
    assert store.num_rows == len(numbers[rows])
    assert store.locate(1).startswith(f"row {range(23)[rows][1]} of ")


def test_no_chunk_is_larger_than_it_may_be(tmp_path, small_chunks):
    store = open_store(save_npy(tmp_path / "g.npy", matrix(num_rows=23)), None, "train")
    assert [len(rows) for _, rows in store.chunks()] == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("rows", [slice(30, 40), slice(5, 5), slice(None, None, -1)])
def test_a_selection_without_rows_is_refused(tmp_path, rows):
    store = open_store(save_npy(tmp_path / "g.npy", matrix(num_rows=23)), None, "train")
    with pytest.raises(UserError, match=r"--rows .* leaves none of the 23 rows"):
        store.select(rows=rows)


def test_norms_multiply_the_rows_they_belong_to(tmp_path, small_chunks):
    numbers, norms = matrix(num_rows=23), torch.linspace(1, 2, 23)
    store = open_store(save_npy(tmp_path / "g.npy", numbers), None, "train").select(rows=slice(4, 20, 2))
    expected = (numbers.double() * norms.double()[:, None])[4:20:2]
    assert torch.equal(everything(store.with_norms(norms)), expected)
