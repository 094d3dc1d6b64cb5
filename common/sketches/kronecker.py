"""Kronecker-factored sketches: (P_E e)(P_A x)ᵀ for every layer by itself, as LoGra and its relatives do.

Reference: Choe, Ahn, Bae, Zhao, Kang, Chung, Pratapa, Neiswanger, Strubell, Mitamura, Schneider, Hovy, Grosse, Xing,
"What is your data worth to GPT? LLM-scale data valuation with influence functions", arXiv 2405.13954.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from common.foundations.seeds import make_generator
from common.gradients.layer_factors import FlatParameter, ParameterFactors
from common.gradients.layer_shares import Linear
from common.sketches.factored import (
    CPU,
    VECTORS,
    FactoredSketch,
    balanced_buckets,
    power_of_two_above,
    random_signs,
    vector_places,
)
from common.sketches.kronecker_sizes import KroneckerSizes, shared_sizes

STREAM = 4


class KroneckerSketch(FactoredSketch):
    """Block diagonal P: (P_E ⊗ P_A) for every matrix parameter, a sparse sketch for the vectors together.

    P_E is b x rows and P_A a x cols, independent entries N(0, 1/b) and N(0, 1/a); a side that is no longer than b or a
    stays as it is. Vectors (biases, scales, all in a row) go, each with a fair sign, to balanced random buckets, a
    power of two of them, or stay where there is room for all. `shared_sizes` says which a and b belong to an m, unless
    `sizes` does. So E[PᵀP] = I. A sketch of size m takes the first rows of the matrices of a larger one.

    Relative variance of ‖Pg‖² for a single layer's g = e xᵀ: (1 + 2/a)(1 + 2/b) − 1, where a Gaussian sketch of a·b
    numbers has 2/(ab). For a gradient matrix G it is 2‖GᵀG‖²_F/a + 2‖GGᵀ‖²_F/b over ‖G‖⁴_F, and terms in 1/(ab).
    """

    def __init__(
        self,
        parameters: tuple[FlatParameter, ...],
        max_m: int,
        seed: int,
        trial: int,
        sizes: Callable[[Sequence[FlatParameter], int], KroneckerSizes] = shared_sizes,
        device: torch.device = CPU,
    ):
        self.parameters, self.max_m, self._sizes = parameters, max_m, sizes
        self._matrices = [p for p in parameters if p.is_matrix]
        self._largest = sizes(parameters, max_m)
        self.width = self._largest.total
        self._places_of_blocks = dict(zip((p.name for p in self._matrices), self._blocks(self._largest), strict=True))
        self._sides = {
            parameter.name: tuple(
                torch.randn(min(count, side), side, generator=generator).to(device)
                for count, side in zip(counts, (parameter.rows, parameter.cols), strict=True)
            )
            for number, parameter, counts in self._numbered()
            for generator in [make_generator("cpu", seed, trial, STREAM, number)]
        }
        self._places, count = vector_places(parameters)
        generator = make_generator("cpu", seed, trial, STREAM, VECTORS)
        self._buckets = balanced_buckets(count, power_of_two_above(max(1, count)), generator).to(device)
        self._signs = random_signs(count, generator).to(device)

    def _numbered(self) -> Iterable[tuple[int, FlatParameter, tuple[int, int]]]:
        numbers = [i for i, p in enumerate(self.parameters, start=1) if p.is_matrix]
        return zip(numbers, self._matrices, self._largest.sides, strict=True)

    def begin(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """Return the (B, width) numbers of all blocks."""
        return (torch.zeros(count, self.width, device=device),)

    def add(self, sums: tuple[Tensor, ...], share: ParameterFactors) -> None:
        """Fill the block of a matrix parameter, or add one of the vectors to theirs."""
        (total,), parameter = sums, share.parameter
        if parameter.is_matrix:
            place, counts = self._places_of_blocks[parameter.name]
            total[:, place] = self._products(share, counts).flatten(1)
            return
        place = self._places[parameter.name]
        signed = share.dense().flatten(1) * self._signs[place]
        vectors = total[:, self.width - self._largest.vectors :]
        vectors.index_add_(1, self._vector_buckets(self._largest.vectors)[place], signed)

    def finish(self, sums: tuple[Tensor, ...]) -> Tensor:
        """Return the (B, width) float32 unscaled numbers."""
        return sums[0]

    def _products(self, share: ParameterFactors, counts: tuple[int, int]) -> Tensor:
        """Return the (B, b, a) sums of (P_E e_t)(P_A x_t)ᵀ over the positions and the factor pairs of a parameter."""
        parameter = share.parameter
        rows, cols = (
            None if count == side else matrix[:count].T
            for matrix, count, side in zip(
                self._sides[parameter.name], counts, (parameter.rows, parameter.cols), strict=True
            )
        )
        products = []
        if share.rest is not None:
            products.append(_times(_times(share.rest, cols).mT, rows).mT)
        for pair in share.factors:
            if isinstance(pair, Linear):
                products.append(torch.bmm(_times(pair.errors, rows).mT, _times(pair.inputs, cols)))
            else:
                table = torch.eye(parameter.rows, device=pair.errors.device) if rows is None else rows
                looked_up = table[pair.inputs]
                products.append(torch.bmm(looked_up.mT, _times(pair.errors, cols)))
        return sum(products[1:], products[0])

    def reduce(self, rows: Tensor, m: int) -> Tensor:
        """Return the (B, size(m)) sketch of size m, scaled."""
        wanted = self._sizes(self.parameters, m)
        parts = []
        for parameter, (place, counts), (b, a) in zip(
            self._matrices, self._places_of_blocks.values(), wanted.sides, strict=True
        ):
            block = rows[:, place].view(len(rows), *counts)
            by_rows, by_cols = self._sides[parameter.name]
            block = _first(block.mT, b, parameter.rows, by_rows).mT
            parts.append(_first(block, a, parameter.cols, by_cols).flatten(1))
        vectors = rows[:, self.width - self._largest.vectors :]
        if wanted.vectors < vectors.shape[1]:
            buckets = self._vector_buckets(wanted.vectors)
            if self._largest.vectors < len(self._signs):
                buckets = torch.arange(vectors.shape[1], device=rows.device) % wanted.vectors
            vectors = vectors.new_zeros(len(rows), wanted.vectors).index_add_(1, buckets, vectors)
        return torch.cat([*parts, vectors], dim=1)

    def size(self, m: int) -> int:
        """Return how many numbers the sketch of size m has: what no square of ranks fits is left over."""
        return self._sizes(self.parameters, m).total

    def block_sizes(self, m: int) -> list[tuple[str, int]]:
        """Return (name and b x a, numbers) of each matrix parameter, then of the vectors, in the order of P's rows."""
        sizes = self._sizes(self.parameters, m)
        sides = zip(self._matrices, sizes.sides, strict=True)
        found = [(f"{p.name} {rows}x{cols}", rows * cols) for p, (rows, cols) in sides]
        return [*found, ("vectors", sizes.vectors)] if sizes.vectors else found

    def _blocks(self, sizes: KroneckerSizes) -> list[tuple[slice, tuple[int, int]]]:
        found, start = [], 0
        for rows, cols in sizes.sides:
            found.append((slice(start, start + rows * cols), (rows, cols)))
            start += rows * cols
        return found

    def _vector_buckets(self, count: int) -> Tensor:
        """Return where each entry of the vectors goes: itself, where there is room for all."""
        size = len(self._signs)
        return torch.arange(size, device=self._signs.device) if count == size else self._buckets % count


def _times(values: Tensor, matrix: Tensor | None) -> Tensor:
    """Return values times the matrix, which is None for the identity."""
    return values if matrix is None else values @ matrix


def _first(values: Tensor, count: int, side: int, matrix: Tensor) -> Tensor:
    """Return (..., count) scaled numbers of a side: as it is, its first sketched numbers, or sketched where whole."""
    if count == side:
        return values
    if values.shape[-1] < side:
        return values[..., :count] / count**0.5
    return values @ matrix[:count].T / count**0.5
