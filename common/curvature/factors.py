"""The factors A and E of every block from one pass over the training samples, and their eigenbases.

    A = (1/n) Σ_i Σ_t x_it x_itᵀ ,    E = (1/N) Σ_i Σ_t e_it e_itᵀ ,    F_l ≈ A ⊗ E ,    N positions t of n samples i

which is F_l for inputs and errors that are independent of one another and from position to position; e belong to the
true labels, as F = GᵀG/n has it. For parameters without positions see blocks.py.

References: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
arXiv 1503.05671; Grosse, Martens, "A Kronecker-factored Approximate Fisher Matrix for Convolution Layers",
arXiv 1602.01407.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.curvature.blocks import MATRIX, Block, occupied
from common.foundations.errors import UserError
from common.gradients.layer_factors import ParameterFactors

LARGEST_SIDE = 8192
"""Sides with more rows keep the diagonal of their factor alone: no matrix of their size squared is made."""

Batches = Iterable[tuple[slice, Iterator[ParameterFactors]]]
"""Rows of some samples, and the factors of their gradients, parameter by parameter."""


@dataclass(frozen=True)
class Side:
    """One factor, A or E, in its eigenbasis."""

    eigenvalues: Tensor
    """(p,) float64, >= 0."""
    basis: Tensor | None
    """(p, p) float64, eigenvectors in its columns; None for the unit vectors, where the factor is diagonal."""

    def rotated(self, vectors: Tensor) -> Tensor:
        """Return the (..., p) coordinates of (..., p) vectors in the eigenbasis."""
        return vectors if self.basis is None else vectors @ self.basis


@dataclass(frozen=True)
class FactoredBlock:
    """A block with its curvature A ⊗ E, whose eigenvalues are all products; never the product itself."""

    block: Block
    """Which parameters."""
    a: Side
    """A, of the (cols,) inputs."""
    e: Side
    """E, of the (rows,) errors."""
    positions: float
    """Mean number of positions a sample, N/n; 1 where there are none to speak of."""

    @property
    def eigenvalues(self) -> Tensor:
        """(rows, cols) float64 eigenvalues e_i a_j of A ⊗ E, those of the coordinates of `coordinates.of`."""
        return torch.outer(self.e.eigenvalues, self.a.eigenvalues)


class _Moment:
    """Second moments of vectors, summed; the diagonal alone where that is all that is kept."""

    def __init__(self, size: int, diagonal: bool, device: torch.device):
        self._sum = torch.zeros((size,) if diagonal else (size, size), dtype=torch.float64, device=device)

    def add(self, vectors: Tensor) -> None:
        """Add those of (..., p) float64 vectors."""
        rows = vectors.flatten(0, -2)
        if self._sum.ndim == 1:
            self._sum += rows.square().sum(0)
        else:
            self._sum.addmm_(rows.T, rows)

    def add_units(self, indices: Tensor) -> None:
        """Add those of unit vectors, given by (...) int64 indices."""
        diagonal = self._sum if self._sum.ndim == 1 else self._sum.diagonal()
        diagonal += torch.bincount(indices.flatten(), minlength=len(diagonal))

    def side(self, divisor: float) -> Side:
        """Return the factor in its eigenbasis; eigenvalues that rounding leaves below 0 are 0."""
        moment = self._sum / divisor if divisor else self._sum
        if moment.ndim == 1:
            return Side(moment, None)
        eigenvalues, basis = torch.linalg.eigh(moment)
        return Side(eigenvalues.clamp(min=0), basis)


class _BlockMoments:
    """What one pass sums for a block."""

    def __init__(self, block: Block, device: torch.device):
        self.block = block
        self._a = _Moment(block.cols, block.cols > LARGEST_SIDE, device)
        self._e = _Moment(block.rows, block.is_table or block.rows > LARGEST_SIDE, device)
        self._positions = 0
        self._squares = 0.0

    def add(self, share: ParameterFactors) -> None:
        """Add a batch."""
        if self.block.kind == MATRIX:
            gradients = self.block.gradients(share)
            self._a.add(gradients)
            self._e.add(gradients.transpose(1, 2))
            self._squares += gradients.square().sum().item()
            return
        for left, right in self.block.positions(share):
            present = occupied(left, right)
            self._positions += int(present.sum())
            self._a.add(right)
            self._e.add_units(left[present]) if left.ndim == 2 else self._e.add(left)

    def factored(self, num_samples: int) -> FactoredBlock:
        """Return the curvature of the block."""
        if self.block.kind == MATRIX:
            return FactoredBlock(self.block, self._a.side(num_samples), self._e.side(self._squares), 1.0)
        positions = self._positions / num_samples
        return FactoredBlock(self.block, self._a.side(num_samples), self._e.side(self._positions), positions)


def fit(blocks: Sequence[Block], batches: Batches, num_samples: int, device: torch.device) -> list[FactoredBlock]:
    """Return the blocks with their factors, from all `num_samples` training samples, the n of F = GᵀG/n.

    Raises:
        UserError: a parameter that no block has turns out to have a gradient, or see `Block.positions`.
    """
    moments = {block.name: _BlockMoments(block, device) for block in blocks}
    biases = {block.bias.name for block in blocks if block.bias is not None}
    for rows, shares in batches:
        for share in shares:
            name = share.parameter.name
            if name in moments:
                moments[name].add(share)
            elif name not in biases and share.dense().any():
                raise UserError(
                    f"{name} has no gradient at the samples that the blocks of the curvature were found from, and has "
                    f"one at training samples {rows.start} to {rows.stop - 1}: its curvature has no factors"
                )
    return [moment.factored(num_samples) for moment in moments.values()]
