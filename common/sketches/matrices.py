"""The entries of P (m x d) for every kind of projection, tile by tile of its columns: their one definition.

Sweeps (projectors.py) and stores (row_projection.py) draw from here, so that a store of seed s holds what trial 0 of
an experiment of seed s sketches with. A column depends on nothing but (seed, trial, kind, m, its number).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.foundations.seeds import make_generator

TILE_NUMBERS = 2**24
SPARSE_TILE_WIDTH = 2**16
STREAMS = {"normal": 0, "rademacher": 1, "sjlt": 2}


@dataclass(frozen=True)
class DenseMatrix:
    """Independent entries: N(0, 1/m) for `normal`, +1/√m or −1/√m with probability 1/2 each for `rademacher`."""

    kind: str
    """normal or rademacher."""
    m: int
    """Rows."""
    seed: int
    """Not negative."""
    trial: int = 0
    """Matrices of different trials are independent."""

    @property
    def tile_width(self) -> int:
        """Return how many columns are drawn together."""
        return max(16, TILE_NUMBERS // self.m)

    def tile(self, number: int, device: torch.device) -> Tensor:
        """Return √m times the columns of a tile, (m, tile_width) float32; a GPU draws other numbers than the CPU."""
        generator = make_generator(device, self.seed, self.trial, STREAMS[self.kind], number)
        shape = (self.m, self.tile_width)
        if self.kind == "normal":
            return torch.randn(shape, generator=generator, device=device)
        signs = torch.randint(0, 2, shape, generator=generator, device=device, dtype=torch.int8)
        return signs.float().mul_(2).sub_(1)


@dataclass(frozen=True)
class SparseMatrix:
    """Sparse Johnson-Lindenstrauss transform: c entries ±1/√c in every column, all others zero.

    The m rows form c blocks of m/c; every column has one entry in each block, its row uniform, its sign fair, all
    independent (the block construction of Kane and Nelson, arXiv 1012.1577; a CountSketch for c = 1). c divides m. The
    row inside a block is a uniform integer of 40 bits reduced modulo m/c, so the matrix of m/2 rows is that of m rows
    with the two halves of every block added up.
    """

    m: int
    """Rows."""
    sparsity: int
    """c."""
    seed: int
    """Not negative."""
    trial: int = 0
    """Matrices of different trials are independent."""

    @property
    def tile_width(self) -> int:
        """Return how many columns are drawn together."""
        return SPARSE_TILE_WIDTH

    def tile(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the entries, (tile_width, c) int64, and their signs, int8, on the CPU."""
        generator = make_generator("cpu", self.seed, self.trial, STREAMS["sjlt"], number)
        shape, block = (self.tile_width, self.sparsity), self.m // self.sparsity
        rows = torch.randint(0, 2**40, shape, generator=generator) % block
        rows += torch.arange(self.sparsity) * block
        return rows, torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1

    def columns(self, num_columns: int) -> tuple[Tensor, Tensor]:
        """Return the rows and signs of the first `num_columns` columns."""
        tiles = [self.tile(number) for number in range(-(-num_columns // self.tile_width))]
        rows, signs = (torch.cat(parts)[:num_columns] for parts in zip(*tiles, strict=True))
        return rows, signs
