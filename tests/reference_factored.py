"""Factored sketches the slow and obvious way: all of P, entry by entry, in float64; and made-up factors to sketch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.gradients.layer_factors import FlatParameter, ParameterFactors
from common.gradients.layer_shares import Linear, Lookup
from common.sketches.factored import FactoredSketch
from common.sketches.kronecker import KroneckerSketch
from common.sketches.tensorsketch import TensorSketch


def flat(*shapes: tuple[int, int]) -> tuple[FlatParameter, ...]:
    """Return parameters p0, p1, ... of these (rows, cols), one after the other."""
    found, start = [], 0
    for number, (rows, cols) in enumerate(shapes):
        found.append(FlatParameter(f"p{number}", start, rows, cols))
        start += rows * cols
    return tuple(found)


def columns_of(sketch: FactoredSketch, m: int) -> Tensor:
    """Return the (size(m), d) matrix P that a sketch is, from what it makes of every unit vector."""
    count = sketch.parameters[-1].columns.stop
    unit = torch.eye(count)
    shares = [ParameterFactors(p, (), unit[:, p.columns].reshape(count, p.rows, p.cols)) for p in sketch.parameters]
    return sketch.reduce(sketch.rows(shares, torch.ones(count, dtype=torch.float64)), m).double().T


def made_up_shares(
    parameters: tuple[FlatParameter, ...], count: int, positions: int, generator: torch.Generator
) -> list[ParameterFactors]:
    """Return factors for every parameter: looked-up rows for the first matrix beside others, gradients for vectors."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shares = []
    for number, p in enumerate(parameters):
        if not p.is_matrix:
            shares.append(ParameterFactors(p, (), draw(count, p.rows, p.cols)))
            continue
        pairs: list[Linear | Lookup] = [Linear(draw(count, positions, p.rows), draw(count, positions, p.cols))]
        if number == 0:
            looked_up = torch.randint(0, p.rows, (count, positions), generator=generator)
            pairs.append(Lookup(draw(count, positions, p.cols), looked_up))
        shares.append(ParameterFactors(p, tuple(pairs), draw(count, p.rows, p.cols) if number == 2 else None))
    return shares


def flat_gradients(shares: list[ParameterFactors]) -> Tensor:
    """Return the (B, d) float64 gradients that shares of all parameters stand for."""
    return torch.cat([share.dense().flatten(1).double() for share in shares], dim=1)


def tensorsketch_matrix(sketch: TensorSketch, m: int) -> Tensor:
    """Return the (m, d) float64 P, written down from the definition."""
    matrix = torch.zeros(m, sketch.parameters[-1].columns.stop, dtype=torch.float64)
    last, length = sketch._last, sketch.length
    entry = 0
    for p in sketch.parameters:
        for k in range(p.rows * p.cols):
            column = p.start + k
            if p.is_matrix:
                rows, cols = sketch._sides[p.name]
                i, j = divmod(k, p.cols)
                bucket = (int(rows.buckets[i]) + int(cols.buckets[j])) % length
                sign = float(rows.signs[i] * cols.signs[j])
            else:
                bucket, sign = int(sketch._vectors.buckets[entry]), float(sketch._vectors.signs[entry])
                entry += 1
            matrix[int(last.buckets[bucket]) % m, column] = sign * float(last.signs[bucket])
    return matrix


def kronecker_matrix(sketch: KroneckerSketch, m: int) -> Tensor:
    """Return the (size(m), d) float64 P, block by block from its two factors."""
    sizes = sketch._sizes(sketch.parameters, m)
    matrices = [p for p in sketch.parameters if p.is_matrix]
    vectors = [p for p in sketch.parameters if not p.is_matrix]
    out = torch.zeros(sizes.total, sketch.parameters[-1].columns.stop, dtype=torch.float64)
    start = 0
    for p, (b, a) in zip(matrices, sizes.sides, strict=True):
        by_rows, by_cols = (x.double() for x in sketch._sides[p.name])
        left = torch.eye(p.rows, dtype=torch.float64) if b == p.rows else by_rows[:b] / b**0.5
        right = torch.eye(p.cols, dtype=torch.float64) if a == p.cols else by_cols[:a] / a**0.5
        out[start : start + a * b, p.columns] = torch.kron(left, right)
        start += a * b
    buckets = sketch._vector_buckets(sizes.vectors)
    entry = 0
    for p in vectors:
        for column in range(p.columns.start, p.columns.stop):
            out[start + int(buckets[entry]), column] = float(sketch._signs[entry])
            entry += 1
    return out


def lengths_of(make: Callable[[int], FactoredSketch], gradient: Tensor, m: int, count: int) -> Tensor:
    """Return the (count,) squared lengths of a (d,) gradient of a single parameter under `count` sketches."""
    found = []
    for trial in range(count):
        sketch = make(trial)
        (p,) = sketch.parameters
        share = ParameterFactors(p, (), gradient.float().view(1, p.rows, p.cols))
        rows = sketch.rows([share], torch.ones(1, dtype=torch.float64))
        found.append(sketch.reduce(rows, m).double().square().sum())
    return torch.stack(found)
