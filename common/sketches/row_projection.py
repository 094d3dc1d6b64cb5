"""Project rows: (b, d) gradients of a few samples to (b, m), for stores of any number of samples.

Where the sweeps of projectors.py take the columns of all samples, block by block, this takes all columns of some
samples. P is the same (matrices.py), and one row comes out the same whatever rows it is projected with, but for the
rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.gradients.kept_rows import LINE_ROWS
from common.sketches.matrices import DenseMatrix, SparseMatrix

try:
    from sjlt import SJLTProjection  # CUDA kernel; requirements-cuda.txt
except ImportError:
    SJLTProjection = None

GROUP_BYTES = 2**29
MOST_ROWS = 1024


class RowProjection(Protocol):
    """P applied to rows."""

    m: int
    """Numbers a projected row."""
    num_columns: int
    """d."""
    rows_at_once: int
    """Rows that are best projected together: what is drawn for one call serves all of them."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (b, m) rows Pg of (b, d) rows g, in their dtype and on their device."""


class DenseRowProjection:
    """Normal or rademacher: P is drawn anew for every call, a tile at a time, so many rows should share a call.

    Memory beside the rows: a tile of P (64 MB) and the projections.
    """

    def __init__(self, matrix: DenseMatrix, num_columns: int):
        self._matrix = matrix
        self.m, self.num_columns = matrix.m, num_columns
        self.rows_at_once = max(1, min(MOST_ROWS, GROUP_BYTES // (4 * num_columns)))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (b, m) rows Pg of (b, d) rows g, in their dtype and on their device."""
        projected = rows.new_zeros(len(rows), self.m)
        for number, part in enumerate(rows.split(self._matrix.tile_width, dim=1)):
            entries = self._matrix.tile(number, rows.device)[:, : part.shape[1]]
            projected.addmm_(part, entries.T.to(rows.dtype))
        return projected.div_(self.m**0.5)


class SparseRowProjection:
    """SJLT: the entries are sorted by their row of P once, and each row of P is then a sum over a list of columns.

    Memory: 12 bytes an entry of P, for all d columns, and the columns of a tile for 16 samples. A row that is not
    finite leaves NaN in those beside it.
    """

    rows_at_once = 1

    def __init__(self, matrix: SparseMatrix, num_columns: int, device: torch.device):
        self.m, self.num_columns, self._sparsity = matrix.m, num_columns, matrix.sparsity
        self._width = matrix.tile_width
        self._tiles: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kernel: Callable[[Tensor], Tensor] | None = None
        if device.type == "cuda" and SJLTProjection is not None:
            kernel = SJLTProjection(num_columns, self.m, self._sparsity, device=device)
            entries = matrix.columns(num_columns)
            kernel.rand_indices.copy_(entries[0])
            kernel.rand_signs.copy_(entries[1])
            self._kernel = kernel
            return
        for number, start in enumerate(range(0, num_columns, self._width)):
            rows, signs = (x[: num_columns - start] for x in matrix.tile(number))
            order = torch.argsort(rows.flatten(), stable=True)
            ends = torch.bincount(rows.flatten(), minlength=self.m).cumsum(0)
            starts = torch.cat([ends.new_zeros(1), ends[:-1]])
            columns, ordered = (order // self._sparsity).int(), signs.flatten()[order].float()
            self._tiles.append((columns.to(device), starts.int().to(device), ordered.to(device)))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (b, m) rows Pg of (b, d) rows g, in their dtype and on their device."""
        projected = rows.new_empty(len(rows), self.m)
        for samples, columns in self.unscaled_columns(rows):
            projected[samples] = columns.T
        return projected.div_(self._sparsity**0.5)

    def unscaled_columns(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (samples, (m, b) columns √c Pg) of (b, d) rows g, in their dtype, a few at a time."""
        if self._kernel is not None:
            yield slice(0, len(rows)), self._kernel(rows.float().contiguous()).T.to(rows.dtype) * self._sparsity**0.5
            return
        beside = rows.new_empty(self._width * LINE_ROWS)
        for start in range(0, len(rows), LINE_ROWS):
            few = rows[start : start + LINE_ROWS]
            total, same = rows.new_zeros(self.m, len(few)), torch.eye(len(few), dtype=rows.dtype, device=rows.device)
            for part, (columns, starts, signs) in zip(few.split(self._width, dim=1), self._tiles, strict=True):
                # samples side by side: a product with the identity is exact, and half the cost of a strided copy
                line = beside[: part.numel()].view(part.shape[1], len(few))
                torch.mm(part.T, same, out=line)
                # a bag of columns for each row of P, summed in a fixed order
                total += F.embedding_bag(columns, line, starts, mode="sum", per_sample_weights=signs.to(rows.dtype))
            yield slice(start, start + len(few)), total


def make_row_projection(kind: str, m: int, seed: int, num_columns: int, device: torch.device) -> RowProjection:
    """Return the projection named normal, rademacher or sjlt (one entry a column) of rows of d numbers."""
    matrix = SparseMatrix(m, 1, seed) if kind == "sjlt" else DenseMatrix(kind, m, seed)
    return row_projection_by(matrix, num_columns, device)


def row_projection_by(matrix: DenseMatrix | SparseMatrix, num_columns: int, device: torch.device) -> RowProjection:
    """Return the projection of rows of d numbers by a matrix."""
    if isinstance(matrix, SparseMatrix):
        return SparseRowProjection(matrix, num_columns, device)
    return DenseRowProjection(matrix, num_columns)
