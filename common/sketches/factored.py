"""Sketches of gradients that come as factors Σ_t e_t x_tᵀ, whose products are never formed.

One sketch P is a fixed linear map of the flat gradient, drawn from (seed, trial, largest m) and the shapes of the
parameters; how a sample's gradient arrives, as factors or as it is, changes nothing but rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from common.gradients.layer_factors import FlatParameter, ParameterFactors

CPU = torch.device("cpu")
VECTORS = 0
"""What random numbers of the vectors are drawn under; parameter i has i + 1."""


class FactoredSketch(ABC):
    """One sketch, P of E[PᵀP] = I, for every m up to a largest one.

    P is drawn on the CPU, so that it is the same everywhere, and kept on the device of the factors.
    """

    parameters: tuple[FlatParameter, ...]
    """All parameters, in the order of the flat gradient."""
    max_m: int
    """Largest m."""
    width: int
    """Numbers a sample that `rows` returns, of which `reduce` makes a sketch of any m <= max_m."""

    def rows(self, shares: Iterable[ParameterFactors], scales: Tensor) -> Tensor:
        """Return the (B, width) float32 unscaled sketch of B gradients, see `rows_of_all`."""
        return rows_of_all([self], shares, scales)[0]

    @abstractmethod
    def begin(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """Return the sums, all 0, that the parameters of `count` samples are added to."""

    @abstractmethod
    def add(self, sums: tuple[Tensor, ...], share: ParameterFactors) -> None:
        """Add what one parameter contributes, already scaled, to sums that `begin` returned."""

    @abstractmethod
    def finish(self, sums: tuple[Tensor, ...]) -> Tensor:
        """Return the (B, width) float32 rows whose parameters have all been added."""

    @abstractmethod
    def reduce(self, rows: Tensor, m: int) -> Tensor:
        """Return the (B, size(m)) float32 rows Pg of the sketch of size m out of what `rows` returned."""

    @abstractmethod
    def size(self, m: int) -> int:
        """Return how many numbers a sketch of size m really has, at most m."""


def rows_of_all(sketches: Sequence[FactoredSketch], shares: Iterable[ParameterFactors], scales: Tensor) -> list[Tensor]:
    """Return the (B, width) float32 unscaled rows of B gradients, each times its own scale, of every sketch.

    Args:
        sketches: all of the same parameters.
        shares: all that the samples use, one parameter after the other.
        scales: (B,) float64; 1/‖g‖ for gradients of unit length.
    """
    sums = [sketch.begin(len(scales), scales.device) for sketch in sketches]
    for share in shares:
        share = scaled(share, scales)
        for sketch, own in zip(sketches, sums, strict=True):
            sketch.add(own, share)
    return [sketch.finish(own) for sketch, own in zip(sketches, sums, strict=True)]


def vector_places(parameters: Iterable[FlatParameter]) -> tuple[dict[str, slice], int]:
    """Return where each parameter with one side only stands among the entries of all of these, and their number."""
    places, count = {}, 0
    for parameter in parameters:
        if not parameter.is_matrix:
            places[parameter.name] = slice(count, count + parameter.rows * parameter.cols)
            count = places[parameter.name].stop
    return places, count


def scaled(share: ParameterFactors, scales: Tensor) -> ParameterFactors:
    """Return the factors of gradients, each times its scale, in float32.

    Scaled in float64, before anything is multiplied: 1e-30 may be an error, but not its product with an input.
    """
    by_sample = scales[:, None, None]
    factors = tuple(
        replace(pair.map(_single), errors=_single(pair.errors.double() * by_sample)) for pair in share.factors
    )
    rest = None if share.rest is None else _single(share.rest.double() * by_sample)
    return ParameterFactors(share.parameter, factors, rest)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def power_of_two_above(count: int) -> int:
    """Return the smallest power of two that is not below `count` >= 1."""
    return 1 << (count - 1).bit_length()


def balanced_buckets(size: int, num_buckets: int, generator: torch.Generator) -> Tensor:
    """Return a random bucket for each of `size` entries, (size,) int64, as evenly filled as can be.

    No two entries share a bucket where there are as many buckets; for powers of two the same holds of buckets modulo
    any smaller power of two. Two entries share one with probability (size/m − 1)/(size − 1) or less.
    """
    if size <= num_buckets:
        return torch.randperm(num_buckets, generator=generator)[:size]
    return torch.randperm(size, generator=generator) % num_buckets


def random_signs(size: int, generator: torch.Generator) -> Tensor:
    """Return independent ±1 with probability 1/2 each, (size,) float32."""
    return (torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) * 2 - 1).float()
