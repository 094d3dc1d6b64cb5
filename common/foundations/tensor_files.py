"""Tensors in files that appear whole or not at all, and fingerprints of tensors."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.foundations.errors import UserError
from common.foundations.storage import write_atomically


def fingerprint(*tensors: Tensor) -> str:
    """Return the sha256 (hex) of the dtypes, shapes and bytes of `tensors`, wherever they live."""
    digest = hashlib.sha256()
    for tensor in (part for each in tensors for part in dense_parts(each)):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        # numpy has no bfloat16, so every dtype goes through its bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors with memory of their own that a tensor consists of: itself, or indices and values."""
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    by_rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    indices = (Tensor.crow_indices, Tensor.col_indices) if by_rows else (Tensor.ccol_indices, Tensor.row_indices)
    return [tensor.values(), *(read(tensor) for read in indices)]


def state_fingerprint(state: dict[str, Any]) -> str:
    """Return the sha256 (hex) of a state dict: its names, dtypes, shapes and bytes, in its order.

    What a module keeps beside tensors (`get_extra_state`) counts with its pickled bytes.
    """
    names = hashlib.sha256("\n".join(state).encode()).hexdigest()
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    extra = [pickle.dumps(value) for value in state.values() if not isinstance(value, Tensor)]
    whole = f"{names} {fingerprint(*tensors)}".encode()
    return hashlib.sha256(b"".join([whole, *extra])).hexdigest()


def on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with its tensors on the CPU; what else a module keeps stays as it is."""
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}


def write_tensors(path: Path, value: object) -> None:
    """Write tensors, or a dict of them, atomically."""
    # torch's own writer would turn the system's refusal into a RuntimeError
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomically(path, buffer.getvalue())


def read_tensors(path: Path) -> Any:
    """Return what `write_tensors` has written, on the CPU; nothing in the file is executed.

    Raises:
        UserError: the file holds something else.
    """
    with naming_unreadable(path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def naming_unreadable(path: Path) -> Iterator[None]:
    """Turn whatever torch says of a file that is not what its manifest promises into one line."""
    try:
        yield
    except MemoryError:
        raise
    # torch's unpickler raises whatever the bytes lead it to
    except Exception as error:
        raise UserError(f"{path} is not what was written there; remove {path.parent} to make it again") from error
