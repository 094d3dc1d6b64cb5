"""Small matrices and what they look like on disk, for tests of the readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.stores.store import Store


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
