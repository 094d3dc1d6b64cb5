"""Random projections P (m x d) of d-dimensional gradients, E[PᵀP] = I: normal, rademacher, sjlt.

No dense d x m matrix is ever stored: the columns of P that meet a block of gradient columns are drawn when the block
arrives. A sparse one takes whole rows (row_projection.py), for which one pass of the model is always enough. One pass
over the gradients serves every m of a sweep, because a sketch of size m is a deterministic reduction of a larger one
with exactly the law it would have had by itself. Sketches of different m in one trial therefore share random numbers;
different trials are independent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from common.gradients.gram import add_gram_of_columns, gram_of_columns
from common.sketches.matrices import DenseMatrix, SparseMatrix
from common.sketches.row_projection import SparseRowProjection

ROWS_IN_PLACE = 128  # few enough to stay in a cache


class UnitRows(Protocol):
    """What a projector needs of gradients: all of them, by columns or by rows."""

    num_rows: int
    """N."""
    num_columns: int
    """d."""

    def unit_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, (N, b) float32 block) of the rows scaled to unit length; zero rows stay zero."""

    def unit_batches(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (places, (b, d) float32 rows scaled to unit length); zero rows stay zero."""


class Projector(ABC):
    """Sketches unit gradients: PG̃ᵀ for every m up to a largest one, deterministic in (seed, trial, largest m)."""

    def __init__(self, seed: int):
        self.seed = seed

    @abstractmethod
    def matrix(self, m: int, trial: int) -> DenseMatrix | SparseMatrix:
        """Return P of m rows."""

    @abstractmethod
    def scale(self, m: int) -> float:
        """Return what the unscaled entries of a sketch of size m are divided by."""

    def project(self, gradients: UnitRows, max_m: int, trial: int) -> Tensor:
        """Return the unscaled (max_m, N) float32 sketch of the rows scaled to unit length."""
        return self.project_all(gradients, max_m, [trial])[0]

    @abstractmethod
    def project_all(self, gradients: UnitRows, max_m: int, trials: Sequence[int]) -> list[Tensor]:
        """Return what `project` does for every trial, from one pass over the gradients."""

    @abstractmethod
    def reduce(self, projected: Tensor, m: int) -> Tensor:
        """Return PG̃ᵀ, (m, N) float32, for m <= max_m out of what `project` returned."""

    @abstractmethod
    def small(self, projected: Tensor) -> Tensor:
        """Return what `project` would have returned for the largest power of two m <= N, or `projected` itself."""

    @abstractmethod
    def grams(self, projected: Tensor, ms: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (m, lower triangle of the (N, N) float64 Gram matrix of PG̃ᵀ) for ascending m > N, out of `projected`.

        `projected` may be overwritten. A Gram matrix is the same to the last bit whatever other m are asked for.
        """


class DenseProjector(Projector):
    """Independent entries: `normal` or `rademacher`, see DenseMatrix."""

    def __init__(self, kind: str, seed: int):
        super().__init__(seed)
        self.kind = kind

    def matrix(self, m, trial):
        return DenseMatrix(self.kind, m, self.seed, trial)

    def scale(self, m):
        return m**0.5

    def project_all(self, gradients, max_m, trials):
        matrices = [self.matrix(max_m, trial) for trial in trials]
        projected: list[Tensor] = []
        for tile, block in _tiles(gradients.unit_blocks(), matrices[0].tile_width):
            if not projected:
                projected = [torch.zeros(max_m, len(block), device=block.device) for _ in trials]
            for matrix, own in zip(matrices, projected, strict=True):
                own.addmm_(matrix.tile(tile, block.device)[:, : block.shape[1]], block.T)
        return projected

    def reduce(self, projected, m):
        return projected[:m] / self.scale(m)

    def small(self, projected):
        return projected

    def grams(self, projected, ms):
        done = _largest_power_of_two(projected.shape[1])
        gram = gram_of_columns(projected[:done])
        for m in ms:
            while 2 * done <= m:
                add_gram_of_columns(gram, projected[done : 2 * done])
                done *= 2
            yield m, (gram + gram_of_columns(projected[done:m])) / m


class SjltProjector(Projector):
    """Sparse Johnson-Lindenstrauss transform, see SparseMatrix; m and c are powers of two, c <= m."""

    def __init__(self, seed: int, sparsity: int = 1):
        super().__init__(seed)
        self.sparsity = sparsity

    def matrix(self, m, trial):
        return SparseMatrix(m, self.sparsity, self.seed, trial)

    def scale(self, m):
        return self.sparsity**0.5

    def project_all(self, gradients, max_m, trials):
        projections: list[SparseRowProjection] = []
        projected: list[Tensor] = []
        for places, rows in gradients.unit_batches():
            if not projected:
                matrices = [self.matrix(max_m, trial) for trial in trials]
                projections = [SparseRowProjection(matrix, gradients.num_columns, rows.device) for matrix in matrices]
                projected = [torch.empty(max_m, gradients.num_rows, device=rows.device) for _ in trials]
            for project, own in zip(projections, projected, strict=True):
                for samples, columns in project.unscaled_columns(rows):
                    own[:, places][:, samples] = columns
        return projected

    def reduce(self, projected, m):
        blocks = projected.reshape(self.sparsity, -1, m // self.sparsity, projected.shape[1])
        return blocks.sum(1).reshape(m, -1) / self.scale(m)

    def small(self, projected):
        size = max(self.sparsity, _largest_power_of_two(projected.shape[1]))
        return projected if size >= len(projected) else self.reduce(projected, size) * self.scale(size)

    def grams(self, projected, ms):
        # With the halves A and B of every block, the sketch of half the size is A + B, and AᵀA + BᵀB, the Gram matrix,
        # is the mean of those of A + B and of A − B. So all sizes together cost as many rows as the largest has.
        blocks = projected.view(self.sparsity, -1, projected.shape[1])
        size = max(self.sparsity, 2 * _largest_power_of_two(projected.shape[1])) // self.sparsity
        half = blocks.shape[1] // 2
        while half >= size:
            for start in range(0, half, ROWS_IN_PLACE):
                first = blocks[:, start : min(start + ROWS_IN_PLACE, half)]
                second = blocks[:, half + start : half + start + first.shape[1]]
                difference = first - second
                first += second
                second.copy_(difference)
            half //= 2
        gram, times = gram_of_columns(blocks[:, :size].flatten(0, 1)), 1
        for m in ms:
            while size < m // self.sparsity:
                add_gram_of_columns(gram, blocks[:, size : 2 * size].flatten(0, 1), times)
                size, times = 2 * size, 2 * times
            yield m, gram / (times * self.sparsity)


def make_projector(proj_type: str, seed: int, sjlt_sparsity: int = 1) -> Projector:
    """Return the projector named `normal`, `rademacher` or `sjlt`."""
    if proj_type == "sjlt":
        return SjltProjector(seed, sjlt_sparsity)
    return DenseProjector(proj_type, seed)


def _largest_power_of_two(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)


def _tiles(blocks: Iterable[tuple[int, Tensor]], width: int) -> Iterator[tuple[int, Tensor]]:
    """Recut column blocks of any widths into (tile index, (N, width) tile); the last one may be narrower."""
    tile, kept = 0, None
    for _, block in blocks:
        kept = block if kept is None else torch.cat([kept, block], dim=1)
        whole = kept.shape[1] // width
        for i in range(whole):
            yield tile + i, kept[:, i * width : (i + 1) * width]
        tile, kept = tile + whole, kept[:, whole * width :]
    if kept is not None and kept.shape[1]:
        yield tile, kept
