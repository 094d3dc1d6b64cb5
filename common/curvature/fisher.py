"""The spectrum of each block's own F_l = G_lᵀG_l/n, which A ⊗ E stands for: where it is affordable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.curvature.blocks import Block
from common.gradients.gram import add_gram, mirror_lower_triangle
from common.gradients.kept_rows import Gradients

LARGEST_SIDE = 6000
"""Matrices of at most so many rows are decomposed: the smaller of n and d_l."""
LARGEST_COST = 4e12
"""Largest n² d_l of a Gram matrix that is summed: a minute or two on a few cores."""


def is_affordable(block: Block, num_train: int) -> bool:
    """Whether `spectra` decomposes the F_l of a block."""
    side = min(num_train, block.size)
    return side <= LARGEST_SIDE and side * num_train * block.size <= LARGEST_COST


def spectra(gradients: Gradients, blocks: Sequence[Block], num_train: int) -> dict[str, Tensor]:
    """Return name of the block -> eigenvalues of its F_l, float64 on the CPU, for the blocks that are affordable.

    One pass over all columns. From n x n inner products, or from F_l itself where it is smaller; eigenvalues that
    rounding leaves below 0 are 0, and those that are 0 by lack of samples are left out.

    Args:
        gradients: of the training samples, and of others behind them.
        blocks: those asked about.
        num_train: n.
    """
    open_blocks = [_OpenFisher(block, num_train) for block in blocks if is_affordable(block, num_train)]
    if not open_blocks:
        return {}
    norms = gradients.norms[:num_train, None]
    found = {}
    for start, columns in gradients.unit_blocks():
        rows = columns[:num_train]
        stop = start + columns.shape[1]
        for fisher in open_blocks:
            for part in fisher.overlaps(start, stop):
                fisher.add(rows[:, part].double() * norms)
        for fisher in [fisher for fisher in open_blocks if fisher.is_complete]:
            found[fisher.block.name] = fisher.eigenvalues()
            open_blocks.remove(fisher)
    return found


class _OpenFisher:
    """The Gram matrix of a block whose columns come piece by piece, or these themselves where they are fewer."""

    def __init__(self, block: Block, num_train: int):
        self.block = block
        self._num_train = num_train
        self._missing = block.size
        self._columns: list[Tensor] | None = [] if block.size < num_train else None
        self._gram: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all columns have come."""
        return self._missing == 0

    def overlaps(self, start: int, stop: int) -> Iterator[slice]:
        """Yield where the block's columns lie among the columns `start` to `stop` of the flat gradient."""
        for parameter in self.block.parameters:
            here = parameter.overlap(start, stop)
            if here is not None:
                yield here

    def add(self, columns: Tensor) -> None:
        """Add (n, b) float64 columns of the gradients."""
        self._missing -= columns.shape[1]
        if self._columns is not None:
            self._columns.append(columns)
            return
        if self._gram is None:
            self._gram = columns.new_zeros(self._num_train, self._num_train)
        add_gram(self._gram, columns)

    def eigenvalues(self) -> Tensor:
        """Return those of F_l."""
        if self._columns is not None:
            gradients = torch.cat(self._columns, 1)
            matrix = gradients.T @ gradients
        else:
            assert self._gram is not None  # a complete block has columns
            matrix = self._gram
            mirror_lower_triangle(matrix)
        return torch.linalg.eigvalsh(matrix / self._num_train).clamp(min=0).cpu()
