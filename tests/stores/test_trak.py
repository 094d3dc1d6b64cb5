from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix, save_npy


def make_folder(root, model_ids=("0",), rows=None, law="normal"):
    """A save_dir as traker 0.3.2 lays it out."""
    rows = matrix(dtype=torch.float16) if rows is None else rows
    (root / "scores").mkdir(parents=True)
    metadata = {"JL dimension": rows.shape[1], "JL matrix type": law, "train set size": len(rows)}
    (root / "metadata.json").write_text(json.dumps(metadata))
    for model_id in model_ids:
        (root / model_id).mkdir()
        save_npy(root / model_id / "grads.mmap", rows)
        save_npy(root / model_id / "_is_featurized.mmap", torch.ones(len(rows), dtype=torch.int32))
        save_npy(root / model_id / "quick_grads.mmap", rows[:3])
    return rows


def test_training_rows_and_targets_come_from_their_own_files(tmp_path):
    rows = make_folder(tmp_path / "trak")
    store, queries = (open_store(tmp_path / "trak", None, role) for role in ("train", "queries"))
    assert (store.format, store.projection) == ("trak", "normal")
    assert torch.equal(everything(store), rows.double())
    assert torch.equal(everything(queries), rows[:3].double())


def test_one_of_several_model_ids_has_to_be_named(tmp_path):
    rows = make_folder(tmp_path / "trak", ("0", "1"), law="ProjectionType.rademacher")
    with pytest.raises(UserError, match=r"there are 2 \(0, 1\); name one, as in .*trak/0"):
        open_store(tmp_path / "trak", None, "train")
    store = open_store(tmp_path / "trak" / "1", None, "train")
    assert torch.equal(everything(store), rows.double())
    assert store.projection == "rademacher"


def test_one_of_several_experiments_has_to_be_named(tmp_path):
    rows = make_folder(tmp_path / "trak")
    save_npy(tmp_path / "trak" / "0" / "other_grads.mmap", rows[:2])
    with pytest.raises(UserError, match=r"there are 2 .*other_grads.mmap"):
        open_store(tmp_path / "trak", None, "queries")
    store = open_store(tmp_path / "trak" / "0" / "other_grads.mmap", None, "queries")
    assert store.num_rows == 2


def test_unfinished_and_removed_gradients_are_refused(tmp_path):
    make_folder(tmp_path / "trak")
    save_npy(tmp_path / "trak" / "0" / "_is_featurized.mmap", torch.tensor([1] * 9 + [0] * 2, dtype=torch.int32))
    with pytest.raises(UserError, match="2 of 11 training samples have no gradients"):
        open_store(tmp_path / "trak", None, "train")
    (tmp_path / "trak" / "0" / "grads.mmap").unlink()
    with pytest.raises(UserError, match=r"grads\.mmap is missing"):
        open_store(tmp_path / "trak", None, "train")


@pytest.mark.filterwarnings("ignore")
def test_a_store_that_traker_itself_has_made_is_read(tmp_path):
    trak = pytest.importorskip("trak")
    from trak.projectors import BasicProjector, ProjectionType

    torch.manual_seed(0)
    model = nn.Linear(8, 3).eval()
    inputs, labels = torch.randn(10, 8), torch.arange(10) % 3
    size = sum(p.numel() for p in model.parameters())
    projector = BasicProjector(size, 16, seed=0, proj_type=ProjectionType.rademacher, device="cpu", block_size=8)
    traker = trak.TRAKer(
        model, "image_classification", 10, save_dir=tmp_path / "trak", device="cpu", projector=projector,
        proj_dim=None, logging_level=50, use_half_precision=False,
    )  # fmt: skip
    traker.load_checkpoint(model.state_dict(), model_id=0)
    traker.featurize((inputs, labels), num_samples=10)
    traker.finalize_features()
    traker.start_scoring_checkpoint("test", model.state_dict(), 0, num_targets=4)
    traker.score((inputs[:4], labels[:4]), num_samples=4)
    traker.finalize_scores("test")

    store, queries = (open_store(tmp_path / "trak", None, role) for role in ("train", "queries"))
    assert (store.num_rows, store.num_columns, store.projection) == (10, 16, "rademacher")
    stored = torch.from_numpy(np.array(np.load(tmp_path / "trak" / "0" / "grads.mmap", mmap_mode="r"))).double()
    assert stored.abs().max() > 0
    assert torch.equal(everything(store), stored)
    torch.testing.assert_close(everything(queries), stored[:4], rtol=1e-5, atol=1e-7)
