from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix

pytestmark = pytest.mark.filterwarnings("ignore")  # dattri compiles on import, with parts of torch that are deprecated


class Network(nn.Module):
    """Takes its batches by name, which is what dattri 0.3.0 gets right."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x, labels):
        return nn.functional.cross_entropy(self.layers(x), labels)


def write_chunks(folder, rows, layers=(4, 2), batches=(2, 3, 6)):
    """Eleven batches of one row, by dattri's own writer."""
    from dattri.algorithm.block_projected_if.offload.disk_io.memory_map import ChunkedMemoryMapHandler

    start = 0
    for first, size in zip((0, 2, 5), batches, strict=True):
        infos = [{"batch_idx": first + i, "start_row": i, "end_row": i + 1} for i in range(size)]
        part = rows[start : start + size]
        ChunkedMemoryMapHandler.write_chunk(str(folder), "gradients", part, infos, list(layers))
        start += size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_follow_one_another_in_the_order_of_their_batches(tmp_path, dtype):
    rows = matrix(dtype=dtype)
    write_chunks(tmp_path / "grad", rows)
    for path in (tmp_path, tmp_path / "grad"):
        store = open_store(path, None, "train")
        assert (store.format, store.projection, store.dtype) == ("dattri", "kronecker", dtype)
        assert torch.equal(everything(store), rows.double())
    assert torch.equal(everything(store.select(module="1")), rows[:, 4:].double())
    assert store.locate(3).startswith("row 1 of ")


def test_a_missing_chunk_and_metadata_of_another_kind_are_refused(tmp_path):
    write_chunks(tmp_path, matrix())
    (tmp_path / "chunk_gradients_2_4.mmap").unlink()
    with pytest.raises(UserError, match=r"chunk_gradients_2_4\.mmap is missing"):
        open_store(tmp_path, None, "train")
    metadata = tmp_path / "chunk_gradients_2_4_metadata.json"
    entry = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({name: entry[name] for name in ("shape", "batches")}))
    with pytest.raises(UserError, match=r"is not what dattri 0\.3 writes"):
        open_store(tmp_path, None, "train")
    metadata.unlink()
    with pytest.raises(UserError, match="the chunk with batch 2 is missing"):
        open_store(tmp_path, None, "train")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="dattri 0.3.0 pins memory to offload, which needs a GPU")
def test_a_store_that_logra_itself_has_made_is_read(tmp_path):
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    torch.manual_seed(0)
    model = Network().eval()
    samples = [{"x": torch.randn(8), "labels": torch.tensor(i % 3)} for i in range(10)]
    task = AttributionTask(
        loss_func=lambda network, batch, device: network(**batch), model=model, checkpoints=model.state_dict()
    )
    logra = LoGraAttributor(
        task, device="cpu", hessian="Identity", proj_dim=4, offload="disk", cache_dir=str(tmp_path), chunk_size=2
    )
    logra.cache(DataLoader(samples, batch_size=3, shuffle=False))
    store = open_store(tmp_path, None, "train")
    assert (store.num_rows, store.num_columns, [m.stop for m in store.modules]) == (10, 8, [4, 8])
    loader = logra.offload_manager.create_gradient_dataloader("gradients", batch_size=1)
    written = [chunk for chunk, _ in loader]
    assert torch.equal(everything(store), torch.cat(written).double())
    assert everything(store).norm(dim=1).min() > 0
