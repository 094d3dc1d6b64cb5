"""Gradients that LogIX logs (logix-ai 0.1.1): `log_rank_<r>_chunk_<c>.mmap`, a sample's modules one after the other.

Written from the package's source: it does not install beside Python 3.11, so no store of its own making was read.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from common.foundations.errors import UserError
from common.stores.store import Module, Region, Store, as_dtype, make_store

NAME = re.compile(r"rank_(\d+)_chunk_(\d+)_metadata\.json$")


def matches(path: Path) -> bool:
    """Whether `path` is a folder with such chunks."""
    return path.is_dir() and bool(_metadata_files(path))


def open_store(path: Path, role: str) -> Store:
    """Return the chunks in `path`, by rank and chunk.

    Raises:
        UserError: metadata lacks something, rows are not back to back, or chunks differ in their modules.
    """
    regions, layouts = [], []
    for file in _metadata_files(path):
        region, layout = _read(file)
        regions.append(region)
        layouts.append(layout)
    if any(layout != layouts[0] for layout in layouts):
        raise UserError(f"{path}: chunks differ in their modules")
    # LoGra: every layer has projections of its own, of inputs and of errors
    return make_store(path, "logix", [regions], modules=layouts[0], projection="kronecker")


def _metadata_files(path: Path) -> list[Path]:
    numbered = [(match.groups(), file) for file in path.iterdir() if (match := NAME.search(file.name))]
    return [file for _, file in sorted(numbered, key=lambda pair: tuple(map(int, pair[0])))]


def _read(file: Path) -> tuple[Region, tuple[Module, ...]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        first = entries[0]
        dtype = as_dtype(str(first["dtype"]), file)
        modules, start = [], 0
        for name, shape in zip(first["path"], first["shape"], strict=True):
            modules.append(Module(".".join(name), start, start + math.prod(shape)))
            start = modules[-1].stop
        for index, entry in enumerate(entries):
            same = entry["shape"] == first["shape"] and entry["dtype"] == first["dtype"]
            if not same or entry["offset"] != first["offset"] + index * start * dtype.itemsize:
                raise UserError(f"{file}: entry {index} ({entry['data_id']}) does not follow the one before it")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        needed = "data_id, path, offset, shape and dtype of every sample"
        raise UserError(f"{file} is not what LogIX 0.1 writes: it must hold {needed}") from error
    numbers = file.with_name(file.name.replace("_metadata.json", ".mmap"))
    if not numbers.is_file():
        raise UserError(f"{numbers} is missing beside {file.name}")
    return Region(numbers, first["offset"], len(entries), start, dtype), tuple(modules)
