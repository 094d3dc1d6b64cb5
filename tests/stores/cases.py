"""Small matrices and what they look like on disk, for tests of the readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.stores.manifest import StoreIdentity
from common.stores.store import Module, Store
from common.stores.writer import StoreWriter


def matrix(num_rows: int = 11, num_columns: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers of `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64).to(dtype)


def everything(store: Store) -> Tensor:
    """Return all rows of a store, (n, M) float64."""
    return torch.cat([rows for _, rows in store.chunks()])


def save_npy(path: Path, rows: Tensor) -> Path:
    """Write an .npy file and return its path."""
    with open(path, "wb") as stream:
        np.save(stream, rows.numpy())
    return path


def identity(**changes) -> StoreIdentity:
    """Return what a small part of a store is made of."""
    plain = StoreIdentity(
        part="train", kind="sjlt", m=6, seed=1, scale="none", n=11, d=40, dtype="float32",
        parameters=(Module("weight", 0, 40),), modules=(), checkpoint="c", data="d",
        device="cpu", torch="2", rows_a_range=4,
    )  # fmt: skip
    return replace(plain, **changes)


def write_part(folder: Path, what: StoreIdentity, rows: Tensor, norms: Tensor) -> StoreWriter:
    """Write a whole part of a store."""
    writer = StoreWriter(folder, what)
    writer.begin()
    for span in what.ranges:
        writer.write(span, rows[span.start : span.stop], norms[span.start : span.stop])
    writer.finish({})
    return writer
