from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix

SIZES = {"layers.0.mlp": 4, "layers.1.mlp": 2}


def make_folder(root, rows=None, processor=None, **changes):
    rows = matrix() if rows is None else rows
    root.mkdir()
    raw = rows.contiguous().view(torch.uint8).numpy()
    (root / "gradients.bin").write_bytes(raw.tobytes())
    dtype = str(rows.dtype).removeprefix("torch.")
    info = {"attribute_tokens": False, "num_items": 11, "num_grads": 11, "grad_sizes": SIZES, "base_dtype": dtype}
    (root / "info.json").write_text(json.dumps(info | changes))
    if processor:
        (root / "processor_config.yaml").write_text(processor)
    return rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_modules_side_by_side_or_one_of_them(tmp_path, dtype):
    rows = make_folder(tmp_path / "index", matrix(dtype=dtype))
    store = open_store(tmp_path / "index", None, "train")
    assert store.format == "bergson"
    assert torch.equal(everything(store), rows.double())
    assert torch.equal(everything(store.select(module="layers.1.mlp")), rows[:, 4:].double())
    with pytest.raises(UserError, match=r"no such module; there are: layers\.0\.mlp, layers\.1\.mlp"):
        store.select(module="layers.2.mlp")


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("projection_dim: 4\nprojection_target: per_module\nprojection_type: rademacher", "kronecker"),
        ("projection_dim: 4\nprojection_target: global\nprojection_type: rademacher", "rademacher"),
        ("projection_dim: 4\nprojection_target: global\nprojection_type: normal", "normal"),
        ("projection_dim: null\nprojection_target: per_module\nprojection_type: normal", None),
        ("nothing: here", None),
    ],
)
def test_the_law_of_the_projection_is_read_from_the_processor(tmp_path, text, law):
    make_folder(tmp_path / "index", processor=text)
    assert open_store(tmp_path / "index", None, "train").projection == law


def test_rows_of_tokens_and_incomplete_metadata_are_refused(tmp_path):
    make_folder(tmp_path / "tokens", attribute_tokens=True)
    with pytest.raises(UserError, match="one row a token"):
        open_store(tmp_path / "tokens", None, "train")
    make_folder(tmp_path / "index", grad_sizes=None)
    with pytest.raises(UserError, match=r"info\.json is not what bergson 2\.5 writes"):
        open_store(tmp_path / "index", None, "train")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_store_that_bergson_itself_has_made_is_read(tmp_path, dtype):
    pytest.importorskip("bergson")
    from bergson.builder import Builder
    from bergson.config.config import PreprocessConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    rows = matrix(dtype=dtype)
    data = Dataset.from_dict({"length": [5] * 11})
    builder = Builder(data, SIZES, dtype, PreprocessConfig(), path=tmp_path / "index")
    for batch in ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]):
        builder(batch, {"layers.0.mlp": rows[batch, :4], "layers.1.mlp": rows[batch, 4:]})
    builder.teardown()
    GradientProcessor(projection_dim=2).save(tmp_path / "index")

    store = open_store(tmp_path / "index", None, "train")
    assert torch.equal(everything(store), rows.double())
    assert store.projection == "kronecker"
    assert np.prod(everything(store).shape) == 66
