"""Data that a package ships in a form that takes long to parse, kept in the data folder for the next call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from common.foundations import storage, tensor_files
from common.foundations.errors import UserError


def kept_or_parsed(path: Path, made_by: dict, parse: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors kept in a file; where they are missing, damaged, or made by others, parse and keep them.

    Args:
        path: the file; manifest.json lies beside it (common/foundations/storage.py). A folder that cannot be written
            costs nothing but time.
        made_by: all that decides what `parse` returns.
        parse: makes them.
    """
    manifest = path.parent / "manifest.json"
    # no lock to read: the folder may be one that only others can write
    if storage.reusable(manifest, made_by):
        return tensor_files.read_tensors(path)
    parsed = parse()
    with suppress(UserError, OSError), storage.exclusive_lock(path.parent):
        if storage.mismatch(manifest, made_by) is not None:
            storage.unseal(manifest)
            tensor_files.write_tensors(path, parsed)
            storage.seal(manifest, made_by, [path])
    return parsed
