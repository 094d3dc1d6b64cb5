"""Tensors in files that appear whole or not at all, and fingerprints of tensors."""

from __future__ import annotations

import hashlib
import io
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
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        # numpy has no bfloat16, so every dtype goes through its bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_fingerprint(state: dict[str, Tensor]) -> str:
    """Return the sha256 (hex) of a state dict: its names, dtypes, shapes and bytes, in its order."""
    names = hashlib.sha256("\n".join(state).encode()).hexdigest()
    return hashlib.sha256(f"{names} {fingerprint(*state.values())}".encode()).hexdigest()


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
