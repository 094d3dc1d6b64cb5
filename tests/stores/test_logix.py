"""The format as the source of logix-ai 0.1.1 writes it; the package does not install beside this Python."""

from __future__ import annotations

import json

import pytest
import torch

from common.foundations.errors import UserError
from common.stores.formats import open_store
from tests.stores.cases import everything, matrix


def write_chunk(folder, rank, chunk, rows):
    folder.mkdir(exist_ok=True)
    name = f"log_rank_{rank}_chunk_{chunk}"
    (folder / f"{name}.mmap").write_bytes(rows.contiguous().view(torch.uint8).numpy().tobytes())
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    entries = [
        {
            "data_id": f"sample {chunk}.{i}",
            "path": [["fc1", "grad"], ["fc2", "grad"]],
            "offset": i * row_bytes,
            "shape": [[2, 2], [2, 1]],
            "block_size": rows.shape[1],
            "dtype": "float32",
        }
        for i in range(len(rows))
    ]
    (folder / f"{name}_metadata.json").write_text(json.dumps(entries))


def test_chunks_follow_one_another_by_rank_and_number(tmp_path):
    rows = matrix(num_rows=12)
    for place, (rank, chunk) in enumerate([(0, 2), (0, 10), (1, 0)]):
        write_chunk(tmp_path / "log", rank, chunk, rows[4 * place : 4 * place + 4])
    store = open_store(tmp_path / "log", None, "train")
    assert (store.format, store.projection) == ("logix", "kronecker")
    assert torch.equal(everything(store), rows.double())
    assert torch.equal(everything(store.select(module="fc2.grad")), rows[:, 4:].double())


def test_rows_that_are_not_back_to_back_are_refused(tmp_path):
    write_chunk(tmp_path / "log", 0, 0, matrix())
    metadata = tmp_path / "log" / "log_rank_0_chunk_0_metadata.json"
    entries = json.loads(metadata.read_text())
    entries[3]["offset"] += 4
    metadata.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"entry 3 \(sample 0\.3\) does not follow"):
        open_store(tmp_path / "log", None, "train")
