"""Stores of this project (`project_gradients.py`): a folder with manifest.json, projected.npy and norms.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.foundations.errors import UserError
from common.foundations.projections import PROJECTIONS
from common.stores.manifest import FORMAT, MANIFEST, NORMS, NUMPY_NAMES, PROJECTED, UNFINISHED, npy_header, read_record
from common.stores.store import Module, Region, Store, as_dtype, make_store

FOLDERS = {"train": "train", "queries": "test"}
# what must agree for rows of two parts to be projections of gradients of one model by one matrix
SHARED = ("kind", "m", "seed", "d", "parameters", "modules", "checkpoint", "device", "torch")


def matches(path: Path) -> bool:
    """Whether `path` is a part of a store, finished or not, or a folder of both parts."""
    return any(_is_part(folder) for folder in (path, *(path / name for name in FOLDERS.values())))


def open_store(path: Path, role: str) -> Store:
    """Return a part of a store; of a folder with both parts, `train` for training rows and `test` for queries.

    Raises:
        UserError: the part is missing or unfinished, or its manifest or arrays are not what they should be.
    """
    folder = path if _is_part(path) else path / FOLDERS[role]
    record = read_record(folder / MANIFEST)
    if record is None:
        if (folder / UNFINISHED).exists():
            raise UserError(f"{folder} is unfinished: the same command of project_gradients.py completes it")
        raise UserError(f"{folder}: there is no {MANIFEST}")
    try:
        n, m, dtype = int(record["n"]), int(record["m"]), str(record["dtype"])
        headers = {PROJECTED: npy_header(NUMPY_NAMES[dtype], (n, m)), NORMS: npy_header("<f8", (n,))}
        modules = tuple(Module(str(s["name"]), int(s["start"]), int(s["stop"])) for s in record["modules"])
        made_of = {name: record[name] for name in SHARED}
        unit, kind = record["scale"] == "unit", str(record["kind"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} is not what project_gradients.py writes: {error!r}") from error
    if kind not in PROJECTIONS or record["scale"] not in ("unit", "none"):
        raise UserError(f"{folder / MANIFEST} has the kind {kind} and scale {record['scale']}, of which one is unknown")
    for name, header in headers.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing beside {MANIFEST}")
        with open(folder / name, "rb") as stream:
            if stream.read(len(header)) != header:
                raise UserError(f"{folder / name} does not hold the {n} rows that {MANIFEST} speaks of, in its dtype")
    if any(module.stop > m for module in modules):
        raise UserError(f"{folder / MANIFEST} has modules beyond the {m} columns of {PROJECTED}")
    Region(folder / NORMS, len(headers[NORMS]), n, 1, torch.float64).check()
    region = Region(folder / PROJECTED, len(headers[PROJECTED]), n, m, as_dtype(dtype, folder))
    store = make_store(path, "sketchlab", [[region]], modules=modules, projection=kind, made_of=made_of)
    if not unit:
        return store
    norms = torch.from_numpy(np.load(folder / NORMS))
    if norms.shape != (n,) or not norms.isfinite().all() or (norms < 0).any():
        raise UserError(f"{folder / NORMS}: {n} finite numbers >= 0 are needed, one a row")
    return store.with_norms(norms)


def _is_part(folder: Path) -> bool:
    for name in (MANIFEST, UNFINISHED):
        try:
            if FORMAT in (folder / name).read_text(encoding="utf-8")[:200]:
                return True
        except (OSError, ValueError):
            continue
    return False
