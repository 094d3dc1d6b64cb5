"""The store of this project: what its files are called, and what its manifest says.

    STORE/train/projected.npy    (n, M) rows, for numpy.load(..., mmap_mode="r")
    STORE/train/norms.npy        (n,) float64 lengths of the unprojected gradients
    STORE/train/manifest.json    what made them, and checksums of ranges of rows; written last
    STORE/test/...               the same for test samples

While a part is being written its arrays end in `.unfinished`, `unfinished.json` says what makes them, and `ranges/`
holds one small file a finished range.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.foundations.errors import UserError
from common.stores.store import Module

FORMAT = "influence-sketch-lab projected gradients"
VERSION = 1
PROJECTED, NORMS, MANIFEST = "projected.npy", "norms.npy", "manifest.json"
UNFINISHED, RANGES, SUFFIX = "unfinished.json", "ranges", ".unfinished"
PARTS = ("train", "test")
# numpy has no bfloat16 of its own: ml_dtypes writes its arrays as raw numbers of two bytes
NUMPY_NAMES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<V2"}
FEWEST_ROWS = 256
MOST_RANGES = 2**16


@dataclass(frozen=True)
class StoreIdentity:
    """Everything that decides the numbers of one part of a store: parts that differ in any of it never mix."""

    part: str
    """train or test."""
    kind: str
    """Law of P: normal, rademacher, sjlt, ..."""
    m: int
    """M, columns of the store."""
    seed: int
    """Of P."""
    scale: str
    """`unit`: every row is divided by its entry of norms.npy, which a reader multiplies it by; `none`: it is not."""
    n: int
    """Rows."""
    d: int
    """Columns of P: numbers of an unprojected gradient."""
    dtype: str
    """float32, float16 or bfloat16."""
    parameters: tuple[Module, ...]
    """Columns of P, by parameter of the model."""
    modules: tuple[Module, ...]
    """Columns of the store, by module, where each module has a projection of its own; else empty."""
    checkpoint: str
    """sha256 (hex) of names, shapes and values of the model's weights."""
    data: str
    """sha256 (hex) of the samples."""
    device: str
    """cpu or cuda, which draw other random numbers."""
    torch: str
    """Version of torch, whose random numbers P is made of."""
    rows_a_range: int
    """Rows of a range, but for the last one."""
    losses: tuple[float, ...] = ()
    """Of a few samples: another loss, or another function of the same weights, gives others."""

    def record(self) -> dict[str, Any]:
        """Return what JSON gives back of it."""
        return json.loads(json.dumps({"format": FORMAT, "version": VERSION} | asdict(self)))

    @property
    def ranges(self) -> list[range]:
        """Return the ranges of rows that are finished or absent as a whole."""
        starts = range(0, self.n, self.rows_a_range)
        return [range(start, min(start + self.rows_a_range, self.n)) for start in starts]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of both arrays."""
        return self.n * (self.m * torch_dtype(self.dtype).itemsize + 8)


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that a manifest names."""
    return getattr(torch, name)


def rows_a_range(num_rows: int, rows_at_once: int) -> int:
    """Return how many rows are finished together: a few calls of the projection, and as equal as they can be.

    Does not depend on the number of processes, so that any number of them can go on.
    """
    wanted = max(FEWEST_ROWS, -(-num_rows // MOST_RANGES), rows_at_once)
    wanted = -(-wanted // rows_at_once) * rows_at_once
    count = -(-num_rows // wanted)
    return -(-num_rows // count)


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the bytes before the numbers of an .npy file."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON of a manifest or of what is unfinished; None where there is no such file.

    Raises:
        UserError: it cannot be read, or is nothing of this project's.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: remove {path.parent}, or choose another folder") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise UserError(f"{path} is no manifest of this version of the store: choose another folder")
    if not _is_sound(record):
        raise UserError(f"{path} is not what project_gradients.py writes: remove {path.parent} to make it again")
    return record


def _is_sound(record: dict[str, Any]) -> bool:
    """Whether what no identity has, and so nobody compares, is as it was written."""
    threads, ranges = record.get("threads"), record.get("ranges", [])
    return isinstance(threads, int) and threads > 0 and isinstance(ranges, list) and all(map(_is_range, ranges))


def _is_range(entry: Any) -> bool:
    types = [type(part) for part in entry] if isinstance(entry, list) else []
    return types == [int, int, str]
