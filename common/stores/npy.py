"""`.npy` files, among them TRAK's `grads.mmap`, which are .npy under another name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.foundations.errors import UserError
from common.stores.store import Region, Store, as_dtype, make_store

MAGIC = b"\x93NUMPY"


def matches(path: Path) -> bool:
    """Whether `path` is a file that begins like an .npy."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def open_store(path: Path, role: str) -> Store:
    """Return the store in an .npy file of two dimensions."""
    return make_store(path, "npy", [[npy_region(path)]])


def npy_region(path: Path) -> Region:
    """Return where the rows of an .npy file lie.

    Raises:
        UserError: the file has no two dimensions, is stored column by column, or holds no floating-point numbers.
    """
    with open(path, "rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, column_by_column, dtype = reader(stream)
        except ValueError as error:
            raise UserError(f"{path} is no readable .npy file: {str(error).splitlines()[0]}") from error
        offset = stream.tell()
    if len(shape) != 2:
        raise UserError(f"{path} holds an array of shape {shape}; projected gradients have two dimensions, (n, M)")
    if column_by_column:
        raise UserError(f"{path} is stored column by column; save it again with numpy.ascontiguousarray")
    if dtype.byteorder == ">":
        raise UserError(f"{path} is big-endian; save it again with .astype({dtype.name!r})")
    return Region(path, offset, *shape, as_dtype(dtype.name, path))
