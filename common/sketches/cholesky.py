"""Cholesky factors of float64 matrices with a ridge, at sizes that caches serve well.

LAPACK stores a factor column by column. Columns a power of two apart fall onto few cache lines: on the machine of
results/ a factorisation of size 1,024 took 1.5 times as long as one of size 1,032. A matrix is therefore bordered by
a few rows of the identity, which change no score.
"""

from __future__ import annotations

import torch
from torch import Tensor


def workspace_for(matrix: Tensor) -> Tensor:
    """Return memory for the factor of a (b, b) matrix or of any leading block, for every λ: new pages take time."""
    return matrix.new_empty(_friendly(len(matrix)) ** 2)


def factor_with_ridge(matrix: Tensor, ridge: float, workspace: Tensor) -> Tensor:
    """Return the lower Cholesky factor L of M + λI, bordered by the identity to a (p, p) matrix, p >= b.

    Args:
        matrix: (b, b) float64 positive semidefinite M; only the lower triangle is read.
        ridge: λ > 0.
        workspace: (p², or more) float64, where L will lie.

    Raises:
        torch.linalg.LinAlgError: M + λI is not positive definite in float64.
    """
    size = len(matrix)
    padded = _friendly(size)
    system = workspace[: padded**2].view(padded, padded)
    system[:size, :size] = matrix
    system[size:] = 0
    system.diagonal()[:size].add_(ridge)
    system.diagonal()[size:] = 1
    failed = torch.zeros((), dtype=torch.int32, device=matrix.device)
    # in place: transposed, the matrix lies as LAPACK has it
    torch.linalg.cholesky_ex(system.T, upper=True, out=(system.T, failed))
    if failed:
        raise torch.linalg.LinAlgError(f"M + λI is not positive definite in float64: λ = {ridge:g}")
    return system


def whiten(factor: Tensor, rows: Tensor) -> Tensor:
    """Return the (v, p) rows L⁻¹x of (v, b) rows x, with zeros in the border that `factor_with_ridge` added."""
    bordered = torch.nn.functional.pad(rows, (0, len(factor) - rows.shape[1]))
    return torch.linalg.solve_triangular(factor, bordered.T, upper=False).T


def _friendly(size: int) -> int:
    """Return the next multiple of 8 that is no multiple of 128."""
    rounded = -(-size // 8) * 8
    return rounded + 8 if rounded % 128 == 0 else rounded
