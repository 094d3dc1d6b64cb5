"""Gradients that LoGra and FactGraSS of dattri (0.3.0) offload: `grad/chunk_gradients_<a>_<b>.mmap`, with JSON."""

from __future__ import annotations

import json
from pathlib import Path

from common.foundations.errors import UserError
from common.stores.store import Module, Region, Store, as_dtype, make_store

PATTERN, SUFFIX = "chunk_gradients_*_metadata.json", "_metadata.json"


def matches(path: Path) -> bool:
    """Whether `path`, or its folder `grad`, holds chunks of gradients."""
    return path.is_dir() and bool(_metadata_files(path))


def open_store(path: Path, role: str) -> Store:
    """Return the chunks in `path` in the order of their batches.

    Raises:
        UserError: metadata lacks something, batches are missing, or chunks differ in their layers.
    """
    chunks = sorted((_read(file) for file in _metadata_files(path)), key=lambda chunk: chunk["batch_start"])
    expected = 0
    for chunk in chunks:
        if chunk["batch_start"] != expected:
            raise UserError(f"{path}: the chunk with batch {expected} is missing")
        expected = chunk["batch_end"] + 1
    layers = chunks[0]["layer_dims"]
    if any(chunk["layer_dims"] != layers for chunk in chunks):
        raise UserError(f"{path}: chunks differ in their layer_dims")
    modules, start = [], 0
    for index, size in enumerate(layers):
        modules.append(Module(str(index), start, start + size))
        start += size
    # every layer has projections of its own, of inputs and of errors
    return make_store(path, "dattri", [[c["region"] for c in chunks]], modules=tuple(modules), projection="kronecker")


def _metadata_files(path: Path) -> list[Path]:
    return sorted(path.glob(PATTERN)) or sorted((path / "grad").glob(PATTERN))


def _read(file: Path) -> dict:
    """Return batch range, layer sizes and region of one chunk."""
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        num_rows, num_columns = (int(size) for size in entry["shape"])
        # numpy has no bfloat16: dattri stores its bits
        name = "bfloat16" if entry["storage_dtype"] == "uint16" else str(entry["storage_dtype"])
        numbers = file.with_name(file.name.removesuffix(SUFFIX) + ".mmap")
        region = Region(numbers, 0, num_rows, num_columns, as_dtype(name, file))
        layers = [int(size) for size in entry["layer_dims"]]
        start, end = int(entry["batch_start"]), int(entry["batch_end"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        needed = "shape, storage_dtype, layer_dims, batch_start and batch_end"
        raise UserError(f"{file} is not what dattri 0.3 writes: it must hold {needed}") from error
    if not numbers.is_file():
        raise UserError(f"{numbers} is missing beside {file.name}")
    if sum(layers) != num_columns:
        raise UserError(f"{file}: layer_dims add up to {sum(layers)}, and rows have {num_columns} numbers")
    return {"batch_start": start, "batch_end": end, "layer_dims": layers, "region": region}
