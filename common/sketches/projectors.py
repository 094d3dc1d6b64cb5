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

from common.foundations.seeds import make_generator
from common.gradients.kept_rows import Gradients

try:
    from sjlt import SJLTProjection  # CUDA kernel; requirements-cuda.txt
except ImportError:
    SJLTProjection = None

TILE_NUMBERS = 2**24


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


class _DenseProjector(Projector):
    stream: int

    @abstractmethod
    def _entries(self, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
        """Return independent unscaled entries, float32 with mean 0 and variance 1."""

    def project(self, gradients, max_m, trial):
        projected = None
        tile_width = max(16, TILE_NUMBERS // max_m)
        for tile, block in _tiles(gradients.unit_blocks(), tile_width):
            generator = make_generator(block.device, self.seed, trial, self.stream, tile)
            entries = self._entries(generator, (max_m, tile_width))
            if projected is None:
                projected = torch.zeros(max_m, len(block), device=block.device)
            projected.addmm_(entries[:, : block.shape[1]], block.T)
        return projected

    def reduce(self, projected, m):
        return projected[:m] / m**0.5


class NormalProjector(_DenseProjector):
    """Independent N(0, 1/m) entries."""

    stream = 0

    def _entries(self, generator, shape):
        return torch.randn(shape, generator=generator, device=generator.device)


class RademacherProjector(_DenseProjector):
    """Independent entries +1/√m or -1/√m with probability 1/2 each."""

    stream = 1

    def _entries(self, generator, shape):
        signs = torch.randint(0, 2, shape, generator=generator, device=generator.device, dtype=torch.int8)
        return signs.float().mul_(2).sub_(1)


class SjltProjector(Projector):
    """Sparse Johnson-Lindenstrauss transform: c entries ±1/√c in every column, all others zero.

    The m rows form c blocks of m/c; every column has one entry in each block, its row uniform, its sign fair, all
    independent (the block construction of Kane and Nelson, arXiv 1012.1577; a CountSketch for c = 1). m and c are
    powers of two, c <= m. The row inside a block is a uniform integer reduced modulo m/c, so the sketch of size m
    is the sketch of size 2m with the two halves of every block added up.
    """

    stream = 2

    def __init__(self, seed: int, sparsity: int = 1):
        super().__init__(seed)
        self.sparsity = sparsity

    def project(self, gradients, max_m, trial):
        generator = make_generator("cpu", self.seed, trial, self.stream)
        shape = (gradients.num_columns, self.sparsity)
        block_size = max_m // self.sparsity
        rows = torch.randint(0, 2**40, shape, generator=generator) % block_size
        rows += torch.arange(self.sparsity) * block_size
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
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
    return {"normal": NormalProjector, "rademacher": RademacherProjector}[proj_type](seed)


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
