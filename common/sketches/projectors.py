"""Random projections P (m x d) of d-dimensional gradients, E[PᵀP] = I: normal, rademacher, sjlt.

No d x m matrix is ever stored: the columns of P that meet a block of gradient columns are drawn when the block
arrives. One pass over the gradients serves every m of a sweep, because a sketch of size m is a deterministic
reduction of a larger one with exactly the law it would have had by itself. Sketches of different m in one trial
therefore share random numbers; different trials are independent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from common.gradients.kept_rows import Gradients
from common.sketches.matrices import DenseMatrix, SparseMatrix

try:
    from sjlt import SJLTProjection  # CUDA kernel; requirements-cuda.txt
except ImportError:
    SJLTProjection = None


class Projector(ABC):
    """Sketches unit gradients: PG̃ᵀ for every m up to a largest one, deterministic in (seed, trial, largest m)."""

    def __init__(self, seed: int):
        self.seed = seed

    @abstractmethod
    def project(self, gradients: Gradients, max_m: int, trial: int) -> Tensor:
        """Return the unscaled (max_m, N) float32 sketch of the rows scaled to unit length."""

    @abstractmethod
    def reduce(self, projected: Tensor, m: int) -> Tensor:
        """Return PG̃ᵀ, (m, N) float32, for m <= max_m out of what `project` returned."""


class DenseProjector(Projector):
    """Independent entries: `normal` or `rademacher`, see DenseMatrix."""

    def __init__(self, kind: str, seed: int):
        super().__init__(seed)
        self.kind = kind

    def project(self, gradients, max_m, trial):
        matrix = DenseMatrix(self.kind, max_m, self.seed, trial)
        projected = None
        for tile, block in _tiles(gradients.unit_blocks(), matrix.tile_width):
            entries = matrix.tile(tile, block.device)
            if projected is None:
                projected = torch.zeros(max_m, len(block), device=block.device)
            projected.addmm_(entries[:, : block.shape[1]], block.T)
        return projected

    def reduce(self, projected, m):
        return projected[:m] / m**0.5


class SjltProjector(Projector):
    """Sparse Johnson-Lindenstrauss transform, see SparseMatrix; m and c are powers of two, c <= m."""

    def __init__(self, seed: int, sparsity: int = 1):
        super().__init__(seed)
        self.sparsity = sparsity

    def project(self, gradients, max_m, trial):
        rows, signs = SparseMatrix(max_m, self.sparsity, self.seed, trial).columns(gradients.num_columns)
        projected = None
        for start, block in gradients.unit_blocks():
            if projected is None:
                projected = torch.zeros(max_m, len(block), device=block.device)
            columns = slice(start, start + block.shape[1])
            self._accumulate(projected, block, rows[columns].to(block.device), signs[columns].to(block.device))
        return projected

    def _accumulate(self, projected: Tensor, block: Tensor, rows: Tensor, signs: Tensor) -> None:
        if block.is_cuda and SJLTProjection is not None:
            kernel = SJLTProjection(block.shape[1], len(projected), self.sparsity, device=block.device)
            kernel.rand_indices.copy_(rows)
            kernel.rand_signs.copy_(signs)
            projected += kernel(block.contiguous()).T * self.sparsity**0.5
            return
        for row, sign in zip(rows.T, signs.T, strict=True):
            projected.index_add_(0, row, (block * sign).T.contiguous())

    def reduce(self, projected, m):
        blocks = projected.reshape(self.sparsity, -1, m // self.sparsity, projected.shape[1])
        return blocks.sum(1).reshape(m, -1) / self.sparsity**0.5


def make_projector(proj_type: str, seed: int, sjlt_sparsity: int = 1) -> Projector:
    """Return the projector named `normal`, `rademacher` or `sjlt`."""
    if proj_type == "sjlt":
        return SjltProjector(seed, sjlt_sparsity)
    return DenseProjector(proj_type, seed)


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
