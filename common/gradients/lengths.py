"""Lengths of gradients, summed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

# 1/length and products with it are then float32 numbers, and no entry that matters is subnormal
SHORT = 1e-30


def row_lengths(rows: Tensor) -> Tensor:
    """Return the (b,) float64 lengths of (b, d) rows, summed in float64."""
    if rows.is_cuda:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    # on a CPU several times as fast as a norm with a dtype of its own, and without a float64 copy of all rows
    exact = rows.new_empty(rows.shape[1], dtype=torch.float64)
    return torch.stack([exact.copy_(row).dot(exact) for row in rows]).sqrt()


def gradient_length(gradient: dict[str, Tensor]) -> Tensor:
    """Return the length, a float64 scalar, of one gradient given as parameter name -> gradient."""
    return torch.stack([part.double().norm() for part in gradient.values()]).norm()


def inverse_lengths(lengths: Tensor) -> Tensor:
    """Return 1/length, and 0 for a length of 0: what scales rows to unit length and leaves zero rows zero."""
    return torch.where(lengths > 0, 1 / lengths, 0)


def scale_to_unit_length(rows: Tensor) -> Tensor:
    """Scale (b, d) float32 rows in place, and return the (b,) float64 lengths they had; zero rows stay zero."""
    lengths = row_lengths(rows)
    short = (lengths < SHORT) & (lengths > 0)
    scale = torch.where(short | (lengths == 0), 1.0, 1 / lengths)
    rows.mul_(scale[:, None].to(rows.dtype))
    for row in torch.nonzero(short).flatten().tolist():
        rows[row] = rows[row].double() / lengths[row]
    return lengths
