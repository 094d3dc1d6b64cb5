"""All scores and standard errors in two .npy files, written as they come and resumed where that stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from common.experiments.audit.scores import Scorer, in_blocks, stream
from common.foundations.distributed import ALONE, Ranks
from common.foundations.storage import make_folder, write_json, writing_to
from common.foundations.tensor_files import fingerprint
from common.stores.store import Store

NAMES = ("scores.npy", "standard_errors.npy")
PROGRESS = "unfinished.json"
# largest scores and errors of a query beyond which float32 would lose some of them
SMALLEST_FLOAT32, LARGEST_FLOAT32 = 1e-30, 1e30


def dtype_of(top: pd.DataFrame) -> str:
    """Return the dtype that holds scores of such a size: float32, else float64."""
    sizes = top.groupby("query")[["score", "standard_error"]].agg(lambda values: values.abs().max())
    beyond = (sizes > LARGEST_FLOAT32) | ((sizes > 0) & (sizes < SMALLEST_FLOAT32))
    return "float64" if beyond.any(axis=None) else "float32"


def write_scores(
    folder: Path, scorer: Scorer, store: Store, made_of: str, dtype: str = "float32", ranks: Ranks = ALONE
) -> None:
    """Write `scores.npy` and `standard_errors.npy`, (k, n) each, into `folder`.

    Until both are whole they are called `.unfinished` and `unfinished.json` says how far they are: the same audit goes
    on from there. Several ranks write the columns of their chunks into the same files.

    Args:
        folder: made where it is missing.
        scorer: k queries.
        store: n training rows.
        made_of: fingerprint of the rows.
        dtype: float32 or float64.
        ranks: who shares the work.

    Raises:
        UserError: the folder cannot be written.
    """
    store = in_blocks(store, len(scorer.queries))
    shape = (len(scorer.queries), store.num_rows)
    identity = {
        "ridge": scorer.ridge,
        "solve": scorer.solve,
        "error_bars": scorer.has_error_bars,
        "shape": list(shape),
        "dtype": dtype,
        "rows_a_chunk": store.chunk_height,
        "rows": made_of,
        "made_of": fingerprint(scorer.basis, scorer.weights, scorer.queries),
    }
    offsets, done = ranks.first(lambda: _begin(folder, identity, shape))
    paths = [folder / f"{name}.unfinished" for name in NAMES]
    with writing_to(folder):
        chunks = stream(scorer, store, done, ranks)
        # every rank has a chunk in every round but the last ones, so that what is done are the first rows
        for first in store.chunk_starts(0, ranks.size):
            if first + (ranks.size - 1) * store.chunk_height < done:
                continue
            found = next((chunk for chunk in chunks), None)
            if found is not None:
                start, *blocks = found
                for path, offset, block in zip(paths, offsets, blocks, strict=True):
                    _write_columns(path, offset, shape, start, block.numpy().astype(dtype))
            ranks.gather(None)
            rows = min(first + ranks.size * store.chunk_height, store.num_rows)
            if ranks.rank == 0:
                write_json(folder / PROGRESS, identity | {"done": rows, "offsets": offsets})
        ranks.first(lambda: _finish(folder, paths))


def _begin(folder: Path, identity: dict, shape: tuple[int, int]) -> tuple[list[int], int]:
    """Return where the numbers begin in each file, and how many training rows are there."""
    make_folder(folder)
    paths = [folder / f"{name}.unfinished" for name in NAMES]
    done = _rows_done(folder, identity) if all(path.exists() for path in paths) else 0
    if done:
        print(f"{folder}: continuing after {done} of {shape[1]} training rows")
    with writing_to(folder):
        if not done:
            offsets = [_create(path, identity["dtype"], shape) for path in paths]
            write_json(folder / PROGRESS, identity | {"done": 0, "offsets": offsets})
        return json.loads((folder / PROGRESS).read_text())["offsets"], done


def _finish(folder: Path, paths: list[Path]) -> None:
    for path, name in zip(paths, NAMES, strict=True):
        os.replace(path, folder / name)
    (folder / PROGRESS).unlink()


def _rows_done(folder: Path, identity: dict) -> int:
    try:
        record = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return int(record["done"]) if all(record[name] == value for name, value in identity.items()) else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _create(path: Path, dtype: str, shape: tuple[int, int]) -> int:
    """Write an empty .npy and return the bytes before its numbers."""
    with open(path, "wb") as stream_:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream_, header)
        offset = stream_.tell()
        stream_.truncate(offset + np.dtype(dtype).itemsize * shape[0] * shape[1])
    return offset


def _write_columns(path: Path, offset: int, shape: tuple[int, int], start: int, block: np.ndarray) -> None:
    # plain writes: pages of a memory map would count as memory of this process
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for query, row in enumerate(block):
            os.pwrite(descriptor, row.tobytes(), offset + block.itemsize * (query * shape[1] + start))
    finally:
        os.close(descriptor)
