"""Influence scores with Kronecker-factored curvature, from coordinates in which it is diagonal.

    B(a, q) = Σ_l Σ_ij C_ij(a) C_ij(q) / (s_ij + λ_l) ,     φ(q) = B(q, q) ,     s = e_i a_j (K-FAC) or Λ_ij (EK-FAC)

Each block l has its own ridge λ_l; the scores of the whole model are the sums over blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 128 << 20


def self_influence(eigenvalues: Tensor, coordinates: Tensor, ridges: Tensor) -> Tensor:
    """Return φ_λ of one block, (ridges, k) float64.

    Args:
        eigenvalues: (rows, cols) s >= 0.
        coordinates: (k, rows, cols) of the queries, any floating dtype; sums are float64.
        ridges: (ridges,) float64 λ_l > 0.
    """
    found = ridges.new_zeros(len(ridges), len(coordinates))
    for part in _chunks(eigenvalues, len(coordinates)):
        squares = coordinates.flatten(1)[:, part].double().square()
        found += (squares @ _inverses(eigenvalues, part, ridges)).T
    return found


def cross_influence(eigenvalues: Tensor, left: Tensor, coordinates: Tensor, ridges: Tensor) -> Tensor:
    """Return B_λ of one block between (v, rows, cols) and (k, rows, cols) vectors, (ridges, v, k) float64."""
    found = ridges.new_zeros(len(ridges), len(left), len(coordinates))
    for part in _chunks(eigenvalues, len(left) + len(coordinates)):
        first, second = (vectors.flatten(1)[:, part].double() for vectors in (left, coordinates))
        for total, inverse in zip(found, _inverses(eigenvalues, part, ridges).T, strict=True):
            total.addmm_(first * inverse, second.T)
    return found


def _inverses(eigenvalues: Tensor, part: slice, ridges: Tensor) -> Tensor:
    return 1 / (eigenvalues.flatten()[part, None] + ridges)


def _chunks(eigenvalues: Tensor, num_vectors: int) -> Iterator[slice]:
    width = max(1, CHUNK_BYTES // (8 * max(1, num_vectors)))
    return (slice(start, start + width) for start in range(0, eigenvalues.numel(), width))


def mean_eigenvalue(eigenvalues: Tensor) -> float:
    """Return tr F_l/d_l, the unit of a relative ridge of the block."""
    return torch.mean(eigenvalues).item()
