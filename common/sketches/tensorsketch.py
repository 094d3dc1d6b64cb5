"""TensorSketch: a sketch of Σ_t e_t x_tᵀ by circular convolutions of a few numbers of e with a few of x.

Reference: Pham, Pagh, "Fast and scalable polynomial kernels via explicit feature maps", KDD 2013; there buckets are
independent. Balanced ones, and a second hashing, take away what makes its noise larger than that of a sparse sketch.
"""

from __future__ import annotations

from dataclasses import dataclass

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

STREAM = 3
LONGEST_SIDE = 2**14
"""Sides beyond this, and beyond m, share buckets: transforms need not be longer."""
CHUNK_NUMBERS = 2**19
"""Of one transform: what stays in a processor's cache."""
POSITION_COST = 200
"""How many positions' share of a product costs what adding the product's entries to their buckets costs."""


@dataclass(frozen=True)
class _Hash:
    """A signed bucket for every index of one side."""

    buckets: Tensor
    """(size,) int64."""
    signs: Tensor
    """(size,) float32."""
    inverse: tuple[Tensor, Tensor] | None
    """(L,) int64 index in each bucket, any where there is none, and (L,) its sign, 0 where there is none; None where
    buckets may hold several."""

    def to(self, device: torch.device) -> _Hash:
        inverse = self.inverse and (self.inverse[0].to(device), self.inverse[1].to(device))
        return _Hash(self.buckets.to(device), self.signs.to(device), inverse)

    def spread(self, values: Tensor, length: int) -> Tensor:
        """Return the (N, length) signed bucket sums of (N, size) values."""
        if self.inverse is not None:  # twice as fast
            source, weights = self.inverse
            return values.index_select(1, source).mul_(weights)
        return values.new_zeros(len(values), length).index_add_(1, self.buckets, values * self.signs)


def _random_hash(size: int, length: int, generator: torch.Generator) -> _Hash:
    buckets, signs = balanced_buckets(size, length, generator), random_signs(size, generator)
    if not 0 < size <= length:
        return _Hash(buckets, signs, None)
    source = torch.zeros(length, dtype=torch.int64).index_copy_(0, buckets, torch.arange(size))
    return _Hash(buckets, signs, (source, torch.zeros(length).index_copy_(0, buckets, signs)))


def transform_length(parameters: tuple[FlatParameter, ...], max_m: int) -> int:
    """Return L: max_m, or the longest side up to 16,384 rounded up to a power of two, whichever is larger."""
    longest = max((side for p in parameters if p.is_matrix for side in (p.rows, p.cols)), default=1)
    return max(max_m, power_of_two_above(min(longest, LONGEST_SIDE)))


class TensorSketch(FactoredSketch):
    """One non-zero entry ±1 in every column, placed by the row and the column of the parameter that it belongs to.

    Entry (i, j) of a matrix parameter has bucket h_E(i) + h_A(j) mod L and sign s_E(i) s_A(j); entry k of the vectors
    (biases, scales, all in a row) has bucket h(k) and sign s(k). Buckets are uniform, and balanced: no two indices
    of a side share one where L is as long as that side, L = max(max_m, the longest side up to 16,384 rounded up to a
    power of two). All parameters add up in the same L numbers. These are hashed once more, to m: bucket π(l) mod m
    with a random permutation π, and a sign. So E[PᵀP] = I without any scaling, and a sketch of size m is one of size
    2m with its halves added up. m is a power of two.

    With G a matrix parameter's gradient and L no shorter than its sides, two of its entries meet in an L bucket only
    if they differ in both indices, with probability 1/(L−1). Different pairs have different signs, but for the two
    diagonals of a rectangle, which meet together with probability of order 1/L². Then
        Var‖Pg‖² = (2/m) ‖g‖⁴ (1 + O(m/L²)) − (2/m) Σ_c g_c⁴ or less,
    that of a CountSketch of the whole gradient. With independent buckets the rows that share a collision of columns,
    and columns that of rows, would add (2/m) (‖GᵀG‖²_F + ‖GGᵀ‖²_F): three times the variance for rank one.
    """

    def __init__(
        self, parameters: tuple[FlatParameter, ...], max_m: int, seed: int, trial: int, device: torch.device = CPU
    ):
        self.parameters, self.max_m, self.width = parameters, max_m, max_m
        self.length = transform_length(parameters, max_m)
        self._sides = {
            p.name: tuple(_random_hash(side, self.length, generator).to(device) for side in (p.rows, p.cols))
            for number, p in enumerate(parameters, start=1)
            if p.is_matrix
            for generator in [make_generator("cpu", seed, trial, STREAM, number)]
        }
        generator = make_generator("cpu", seed, trial, STREAM, VECTORS)
        self._places, count = vector_places(parameters)
        self._vectors = _random_hash(count, self.length, generator).to(device)
        self._last = _random_hash(self.length, max_m, generator).to(device)

    def begin(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """Return (B, L) bucket sums and the (B, L/2 + 1) spectrum of more of them."""
        total = torch.zeros(count, self.length, device=device)
        return total, torch.zeros(count, self.length // 2 + 1, device=device, dtype=torch.complex64)

    def add(self, sums: tuple[Tensor, ...], share: ParameterFactors) -> None:
        """Add one parameter: factors of many positions to the spectrum, all else to the bucket sums."""
        (total, spectrum), parameter = sums, share.parameter
        if not parameter.is_matrix:
            place = self._places[parameter.name]
            signed = share.dense().flatten(1) * self._vectors.signs[place]
            total.index_add_(1, self._vectors.buckets[place], signed)
            return
        sides = self._sides[parameter.name]
        if share.rest is not None:
            self._add_products(total, share.rest, *sides)
        for pair in share.factors:
            if not isinstance(pair, Linear):
                self._add_lookups(total, pair.inputs, pair.errors, *sides)
            elif self._product_is_cheaper(pair, parameter):
                self._add_small_products(total, pair, *sides)
            else:
                self._add_transforms(spectrum, pair, *sides)

    def finish(self, sums: tuple[Tensor, ...]) -> Tensor:
        """Return the (B, max_m) float32 sketch, after one inverse transform a sample."""
        total, spectrum = sums
        return self._last.spread(total + torch.fft.irfft(spectrum, n=self.length), self.max_m)

    def reduce(self, rows: Tensor, m: int) -> Tensor:
        """Return the (B, m) sketch of size m: bucket sums modulo m."""
        return rows.reshape(len(rows), -1, m).sum(1)

    def size(self, m: int) -> int:
        """Return m."""
        return m

    def _product_is_cheaper(self, pair: Linear, parameter: FlatParameter) -> bool:
        positions = pair.errors.shape[1]
        return parameter.rows * parameter.cols * (1 + positions / POSITION_COST) < positions * self.length

    def _add_transforms(self, spectrum: Tensor, pair: Linear, rows: _Hash, cols: _Hash) -> None:
        """Add Σ_t FFT(bucket sums of e_t) FFT(bucket sums of x_t) to the (B, L/2 + 1) spectrum."""
        count, positions = pair.errors.shape[:2]
        step = max(1, CHUNK_NUMBERS // self.length)
        samples = max(1, step // positions)
        for first in range(0, count, samples):
            some = slice(first, first + samples)
            errors, inputs = pair.errors[some], pair.inputs[some]
            for start in range(0, positions, step):
                part = slice(start, start + step)
                left = self._transform(errors[:, part], rows)
                product = left.mul_(self._transform(inputs[:, part], cols))
                spectrum[some] += product.view(len(errors), -1, product.shape[1]).sum(1)

    def _transform(self, values: Tensor, side: _Hash) -> Tensor:
        return torch.fft.rfft(side.spread(values.flatten(0, 1), self.length), n=self.length)

    def _add_small_products(self, total: Tensor, pair: Linear, rows: _Hash, cols: _Hash) -> None:
        step = max(1, CHUNK_NUMBERS // (len(rows.signs) * len(cols.signs)))
        places = self._places_of_products(rows, cols)
        for first in range(0, len(total), step):
            some = slice(first, first + step)
            self._add_to(total[some], torch.bmm(pair.errors[some].mT, pair.inputs[some]), *places)

    def _add_products(self, total: Tensor, gradients: Tensor, rows: _Hash, cols: _Hash) -> None:
        """Add the bucket sums of (B, rows, cols) gradients."""
        self._add_to(total, gradients, *self._places_of_products(rows, cols))

    def _places_of_products(self, rows: _Hash, cols: _Hash) -> tuple[Tensor, Tensor]:
        """Return the (rows · cols,) buckets and the (rows, cols) signs of the entries of a parameter."""
        buckets = (rows.buckets[:, None] + cols.buckets) % self.length
        return buckets.flatten(), rows.signs[:, None] * cols.signs

    @staticmethod
    def _add_to(total: Tensor, gradients: Tensor, buckets: Tensor, signs: Tensor) -> None:
        total.scatter_add_(1, buckets.expand(len(total), -1), (gradients * signs).flatten(1))

    def _add_lookups(self, total: Tensor, looked_up: Tensor, values: Tensor, rows: _Hash, cols: _Hash) -> None:
        """Add the bucket sums of gradients whose row i, for (B, S) i, gets (B, S, cols) values."""
        buckets = (rows.buckets[looked_up][..., None] + cols.buckets) % self.length
        signed = values * cols.signs * rows.signs[looked_up][..., None]
        total.scatter_add_(1, buckets.flatten(1), signed.flatten(1))
