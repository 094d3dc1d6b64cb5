from __future__ import annotations

import pytest
import torch

from common.foundations.errors import UserError
from common.stores.side_by_side import Matrix, store_of_matrices
from common.stores.store import Module, Region
from tests.stores.cases import everything, matrix


def write(path, *parts):
    """Return the matrices that stand one behind the other in a file, each behind 3 other bytes."""
    content, found = b"", []
    for number, rows in enumerate(parts):
        content += b"xyz"
        found.append(Matrix(f"m{number}", Region(path, len(content), *rows.shape, rows.dtype)))
        content += rows.view(torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    return found


def test_one_matrix_is_the_store_and_its_only_module_says_nothing_of_the_projection(tmp_path):
    rows = matrix(dtype=torch.float64)
    store = store_of_matrices(tmp_path / "g", "torch", write(tmp_path / "g", rows), {"m0": (11, 6)})
    assert (store.path, store.format, store.projection) == (tmp_path / "g", "torch", None)
    assert store.modules == (Module("m0", 0, 6),)
    assert torch.equal(everything(store), rows)


def test_several_matrices_stand_side_by_side_in_their_order_each_a_projection_of_its_own(tmp_path):
    parts = [matrix(num_columns=columns, seed=columns) for columns in (6, 1, 3)]
    store = store_of_matrices(tmp_path / "g", "safetensors", write(tmp_path / "g", *parts), {})
    assert store.modules == (Module("m0", 0, 6), Module("m1", 6, 7), Module("m2", 7, 10))
    assert store.projection == "blocks"
    assert torch.equal(everything(store), torch.cat(parts, dim=1).double())
    for module, rows in zip(store.modules, parts, strict=True):
        assert torch.equal(everything(store.select(module=module.name)), rows.double())


@pytest.mark.parametrize(
    ("shapes", "there"),
    [
        ({"ids": (4,), "cube": (2, 3, 4)}, "ids (4,), cube (2, 3, 4)"),
        ({}, "nothing"),
        ({f"t{i}": (i,) for i in range(20)}, ", ".join(f"t{i} ({i},)" for i in range(8))),
    ],
)
def test_without_a_matrix_the_message_has_the_shapes_of_up_to_eight_tensors(tmp_path, shapes, there):
    with pytest.raises(UserError) as raised:
        store_of_matrices(tmp_path / "g", "torch", [], shapes)
    path = tmp_path / "g"
    assert str(raised.value) == f"{path} has no two-dimensional tensor of projected gradients; it holds {there}"


def test_matrices_of_other_heights_or_dtypes_are_no_one_store(tmp_path):
    for other, message in (
        (matrix(num_rows=3), "modules of one store have different numbers of rows"),
        (matrix(dtype=torch.float16), "parts of one store have the dtypes float32 and float16; they must have one"),
    ):
        with pytest.raises(UserError) as raised:
            store_of_matrices(tmp_path / "g", "torch", write(tmp_path / "g", matrix(), other), {})
        assert str(raised.value) == f"{tmp_path / 'g'}: {message}"
