"""Tensors that `torch.save` wrote, such as LESS's `all_orig.pt`: one matrix, or a dict of one a module."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from common.foundations.errors import UserError, first_line
from common.stores.side_by_side import Matrix, store_of_matrices
from common.stores.store import Region, Store, as_dtype, dtype_name

# torch prints in colours
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
SUFFIXES = (".pt", ".pth", ".bin")


def matches(path: Path) -> bool:
    """Whether `path` is a file with one of torch's usual suffixes."""
    return path.is_file() and path.suffix in SUFFIXES


def open_store(path: Path, role: str) -> Store:
    """Return the store of the matrices of the file; no number is read, and nothing in it is executed."""
    tensors = _tensors(path)
    matrices = []
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            continue
        if not tensor.is_contiguous():
            raise UserError(f"{path}: {name} is not stored row by row; save it again after .contiguous()")
        if tensor.is_neg():
            raise UserError(f"{path}: {name} is stored with the other sign; save it again after .resolve_neg()")
        dtype = as_dtype(dtype_name(tensor.dtype), path)
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            raise UserError(
                f"{path} is in torch's format of before 2020, which cannot be read in pieces; save it again"
            )
        offset = start + tensor.storage_offset() * dtype.itemsize
        rows, columns = tensor.shape
        matrices.append(Matrix(name, Region(path, offset, rows, columns, dtype)))
    return store_of_matrices(path, "torch", matrices, {name: tuple(t.shape) for name, t in tensors.items()})


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        # tensors without numbers, which know their place in the file
        with FakeTensorMode():
            content = torch.load(path, weights_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    # torch's unpickler raises whatever the bytes lead it to
    except Exception as error:
        line = ESCAPES.sub("", first_line(error, 120))
        raise UserError(f"{path} is no readable file of torch.save, or is truncated ({line})") from error
    if isinstance(content, Tensor):
        content = {"tensor": content}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; it must hold a tensor or a dict of tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
