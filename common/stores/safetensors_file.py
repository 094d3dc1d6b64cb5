"""`.safetensors` files: one matrix, or one a module side by side.

A length of 8 bytes, that much JSON with dtype, shape and place of every tensor, then the numbers
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from operator import index
from pathlib import Path

from common.foundations.errors import UserError
from common.stores.side_by_side import Matrix, store_of_matrices
from common.stores.store import Region, Store, as_dtype

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
LARGEST_HEADER = 10**8


def matches(path: Path) -> bool:
    """Whether `path` is called .safetensors."""
    return path.is_file() and path.suffix == ".safetensors"


def open_store(path: Path, role: str) -> Store:
    """Return the store of the two-dimensional tensors of the file."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if not 0 < length <= LARGEST_HEADER:
                raise ValueError("no header")
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            places = {name: _place(entry) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path} is no readable .safetensors file, or is truncated") from error
    matrices = []
    for name, (dtype, shape, place) in places.items():
        if len(shape) == 2:
            region = Region(path, 8 + length + place, *shape, as_dtype(DTYPES.get(dtype, dtype), path))
            matrices.append(Matrix(name, region))
    return store_of_matrices(path, "safetensors", matrices, {name: shape for name, (_, shape, _) in places.items()})


def _place(entry: dict) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and offset of a tensor; ValueError or TypeError where they are none."""
    shape, offset = tuple(map(index, entry["shape"])), index(entry["data_offsets"][0])
    if min(0, offset, *shape) < 0:
        raise ValueError("negative sizes")
    return str(entry["dtype"]), shape, offset
