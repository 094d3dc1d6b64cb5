"""Coordinates of gradients in the eigenbases of a block's factors, in which A ⊗ E is diagonal, and EK-FAC beside it.

    C = U_Eᵀ G U_A ,     K-FAC: e_i a_j ,     EK-FAC: Λ_ij = (1/n) Σ C_ij² over training samples

both (rows, cols) like the gradient G of one sample. Λ is the best diagonal in this basis.

Reference: George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis",
arXiv 1806.03884.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.curvature.blocks import MATRIX
from common.curvature.factors import Batches, FactoredBlock, Side
from common.foundations.packing import packed
from common.gradients.layer_factors import ParameterFactors

KFAC, EKFAC = "kfac", "ekfac"
"""Names of the curvatures."""
COORDINATE_BYTES = 4 << 30
"""What the coordinates of one group of blocks take at most, unless a single block takes more."""


@dataclass(frozen=True)
class BlockCoordinates:
    """What scores need of one block."""

    factored: FactoredBlock
    """The block and its factors."""
    corrected: Tensor
    """(rows, cols) float64 Λ, the eigenvalues of EK-FAC."""
    subset_sums: Tensor
    """(S, rows, cols) float32 coordinates of the summed gradients of the training samples of each subset."""
    queries: Tensor
    """(k, rows, cols) float32 coordinates of the queries, in units of the length of their gradient in all blocks."""

    @property
    def eigenvalues(self) -> dict[str, Tensor]:
        """(rows, cols) float64 eigenvalues of each curvature, by name."""
        return {KFAC: self.factored.eigenvalues, EKFAC: self.corrected}


def of(factored: FactoredBlock, share: ParameterFactors) -> Tensor:
    """Return the (B, rows, cols) float64 coordinates C of the gradients of a batch."""
    block, a, e = factored.block, factored.a, factored.e
    if block.kind == MATRIX:
        return _both_sides(block.gradients(share), a, e)
    total: Tensor | None = None
    for left, right in block.positions(share):
        part = _looked_up(left, right, a, e) if left.ndim == 2 else _multiplied(left, right, a, e)
        total = part if total is None else total.add_(part)
    assert total is not None  # a block of the kind `layer` has a factor pair
    return total


def groups(blocks: Sequence[FactoredBlock], num_subsets: int, num_queries: int) -> list[list[FactoredBlock]]:
    """Return the blocks, in order, in groups whose coordinates fit in COORDINATE_BYTES."""
    bytes_per_parameter = 12 * num_subsets + 4 * num_queries  # sums are float64 while they grow
    return packed(blocks, lambda factored: bytes_per_parameter * factored.block.size, COORDINATE_BYTES)


def gather(
    blocks: Sequence[FactoredBlock],
    train: Batches,
    queries: Batches,
    memberships: Tensor,
    query_norms: Tensor,
) -> list[BlockCoordinates]:
    """Return the coordinates of all queries and of the sums over subsets, and Λ, from one pass over each.

    Args:
        blocks: those wanted; factors of other parameters are passed over.
        train: factors of the n training samples.
        queries: factors of the k queries.
        memberships: (S, n) float64, 1 where a training sample belongs to a subset; S may be 0.
        query_norms: (k,) lengths of the gradients of the queries; 0 leaves a query as it is.
    """
    device = memberships.device
    num_subsets, num_train = memberships.shape
    scale = torch.where(query_norms > 0, 1 / query_norms, 1.0).to(device)
    wanted = {factored.block.name: factored for factored in blocks}
    shapes = {name: (factored.block.rows, factored.block.cols) for name, factored in wanted.items()}
    squares = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    sums = {name: squares[name].new_zeros(num_subsets, *shape) for name, shape in shapes.items()}
    rotated = {name: torch.zeros(len(scale), *shape, device=device) for name, shape in shapes.items()}
    for rows, name, found in of_batches(wanted, train):
        squares[name] += found.square().sum(0)
        sums[name].flatten(1).addmm_(memberships[:, rows], found.flatten(1))
    for rows, name, found in of_batches(wanted, queries):
        rotated[name][rows] = (found * scale[rows, None, None]).float()
    return [
        BlockCoordinates(factored, squares[name] / num_train, sums[name].float(), rotated[name])
        for name, factored in wanted.items()
    ]


def of_batches(wanted: dict[str, FactoredBlock], batches: Batches) -> Iterator[tuple[slice, str, Tensor]]:
    for rows, shares in batches:
        for share in shares:
            name = share.parameter.name
            if name in wanted:
                yield rows, name, of(wanted[name], share)


def _both_sides(gradients: Tensor, a: Side, e: Side) -> Tensor:
    return e.rotated(a.rotated(gradients).transpose(1, 2)).transpose(1, 2)


def _multiplied(left: Tensor, right: Tensor, a: Side, e: Side) -> Tensor:
    """Return Σ_t (U_Eᵀ e_t)(U_Aᵀ x_t)ᵀ, multiplied out before or after the rotation, whichever is cheaper."""
    positions, rows, cols = left.shape[1], left.shape[2], right.shape[2]
    if positions * (rows**2 + cols**2) > rows * cols * (rows + cols):
        return _both_sides(left.transpose(1, 2) @ right, a, e)
    return e.rotated(left).transpose(1, 2) @ a.rotated(right)


def _looked_up(indices: Tensor, right: Tensor, a: Side, e: Side) -> Tensor:
    """Return the same where e_t are the unit vectors of `indices`."""
    turned = a.rotated(right)
    if e.basis is not None:
        return e.basis[indices].transpose(1, 2) @ turned
    total = turned.new_zeros(len(turned), len(e.eigenvalues), turned.shape[2])
    sample = torch.arange(len(turned), device=turned.device)[:, None].expand_as(indices)
    return total.index_put_((sample, indices), turned, accumulate=True)
