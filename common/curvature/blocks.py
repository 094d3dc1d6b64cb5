"""The blocks of the curvature: which parameters share one A ⊗ E, and where its factors come from.

layer     the gradient is Σ_t e_t x_tᵀ over positions t (linear layers, convolutions by patches, embeddings by the
          unit vectors of their rows); a bias beside a weight is one more column of it, with x = 1
vector    a parameter with one side (norms, biases without a weight): A = 1, E its whole matrix Σ g gᵀ/n
matrix    a matrix that no layer explains: A = Σ GᵀG/n and E = Σ GGᵀ/Σ‖G‖² from the gradients G themselves
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.foundations.errors import UserError
from common.gradients.layer_factors import FlatParameter, ParameterFactors
from common.gradients.layer_shares import Linear

LAYER, VECTOR, MATRIX = "layer", "vector", "matrix"
SAME_GRADIENT = 1e-4
"""A bias joins a weight where its gradients are the sums of the weight's errors, up to this share of their length."""


@dataclass(frozen=True)
class Block:
    """Parameters whose gradients are one (rows, cols) matrix G a sample, with curvature A ⊗ E."""

    weight: FlatParameter
    """The parameter that names the block."""
    kind: str
    """`layer`, `vector` or `matrix`, see above."""
    bias: FlatParameter | None = None
    """The bias that is one more column of G, or one more row where the weight is kept transposed."""
    bias_is_row: bool = False
    """Which of both."""
    is_table: bool = False
    """Whether rows are only ever looked up: then E is diagonal."""

    @property
    def name(self) -> str:
        """Of the weight."""
        return self.weight.name

    @property
    def parameters(self) -> tuple[FlatParameter, ...]:
        """Of the block, one or two."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def rows(self) -> int:
        """Rows of G, the side of E."""
        return self.weight.rows + (self.bias is not None and self.bias_is_row)

    @property
    def cols(self) -> int:
        """Columns of G, the side of A."""
        return self.weight.cols + (self.bias is not None and not self.bias_is_row)

    @property
    def size(self) -> int:
        """d_l, parameters of the block."""
        return self.rows * self.cols

    def positions(self, share: ParameterFactors) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (left, right) float64 pairs with G = Σ_t left_t right_tᵀ: (B, T, rows) and (B, T, cols).

        `left` is (B, T) int64 where it stands for unit vectors: rows of a table. Not for the kind `matrix`.

        Raises:
            UserError: the weight is used in another way than by the samples that the block was found from.
        """
        self._check(share)
        if self.kind == VECTOR:
            gradients = share.dense().double().flatten(1).unsqueeze(1)
            yield gradients, gradients.new_ones(len(gradients), 1, 1)
            return
        for pair in share.factors:
            if isinstance(pair, Linear):
                yield self._with_bias(pair.errors.double(), pair.inputs.double())
            else:
                yield pair.inputs, pair.errors.double()

    def gradients(self, share: ParameterFactors) -> Tensor:
        """Return the (B, rows, cols) float64 gradients of a block of the kind `matrix`."""
        self._check(share)
        return share.dense().double()

    def _with_bias(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        if self.bias is None:
            return left, right
        ones = occupied(left, right).unsqueeze(-1).double()
        return (torch.cat([left, ones], -1), right) if self.bias_is_row else (left, torch.cat([right, ones], -1))

    def _check(self, share: ParameterFactors) -> None:
        table = self.is_table and any(isinstance(pair, Linear) for pair in share.factors)
        if table or (self.kind == LAYER and share.rest is not None):
            raise UserError(
                f"{self.name} is used by some samples in another way than by the first ones looked at: its curvature "
                "has no factors"
            )


def occupied(left: Tensor, right: Tensor) -> Tensor:
    """Return (B, T) bool: whether a position is one, and not what a sample lacks beside others that have more."""
    has_left = left.ne(0).any(-1) if left.ndim == 3 else torch.zeros_like(left, dtype=torch.bool)
    return has_left | right.ne(0).any(-1)


def find_blocks(shares: Sequence[ParameterFactors]) -> list[Block]:
    """Return the blocks of all parameters that some samples have gradients in, from the factors of these samples."""
    by_name = {share.parameter.name: share for share in shares}
    joined: set[str] = set()
    blocks = []
    for share in shares:
        block = _block(share, by_name)
        blocks.append(block)
        if block.bias is not None:
            joined.add(block.bias.name)
    return [block for block in blocks if block.name not in joined]


def without_block(parameters: Sequence[FlatParameter], blocks: Collection[Block]) -> list[str]:
    """Return the names of the parameters that no block has: their gradients are zero at all samples looked at."""
    found = {parameter.name for block in blocks for parameter in block.parameters}
    return [parameter.name for parameter in parameters if parameter.name not in found]


def _block(share: ParameterFactors, by_name: dict[str, ParameterFactors]) -> Block:
    parameter = share.parameter
    if not parameter.is_matrix and not share.factors:
        # one column, whichever way the parameter lies
        column = FlatParameter(parameter.name, parameter.start, parameter.rows * parameter.cols, 1)
        return Block(column, VECTOR)
    if share.rest is not None or not share.factors:
        return Block(parameter, MATRIX)
    linear = [pair for pair in share.factors if isinstance(pair, Linear)]
    if len(linear) < len(share.factors):
        return Block(parameter, LAYER, is_table=not linear)
    bias = by_name.get(_bias_name(parameter.name))
    if bias is not None and bias.rest is not None and not bias.factors:
        given = bias.rest.flatten(1)
        for sums, is_row in ((_summed(linear, "errors"), False), (_summed(linear, "inputs"), True)):
            if sums.shape == given.shape and (sums - given).norm() <= SAME_GRADIENT * given.norm():
                return Block(parameter, LAYER, bias.parameter, is_row)
    return Block(parameter, LAYER)


def _bias_name(weight: str) -> str:
    head, found, tail = weight.rpartition("weight")
    return f"{head}bias{tail}" if found else ""


def _summed(pairs: list[Linear], side: str) -> Tensor:
    return sum((getattr(pair, side).sum(1) for pair in pairs), start=torch.zeros(()))
