"""How a Kronecker-factored sketch shares its m numbers among the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

from common.gradients.layer_factors import FlatParameter


@dataclass(frozen=True)
class KroneckerSizes:
    """Numbers that each parameter's gradient becomes."""

    sides: tuple[tuple[int, int], ...]
    """(b, a) of each matrix parameter, in order: its rows become b, its columns a; a side that is no longer stays."""
    vectors: int
    """Of all vectors together."""

    @property
    def total(self) -> int:
        """Of all parameters, Σ a·b and the vectors'."""
        return sum(rows * cols for rows, cols in self.sides) + self.vectors


def shared_sizes(parameters: Sequence[FlatParameter], m: int) -> KroneckerSizes:
    """Return sizes of at most m numbers in all, each of them growing with m.

    Each matrix parameter, and the vectors together, get one number, and the rest in proportion to the square root of
    their entries; none gets more than it has entries, and what is left goes to the others. A matrix parameter makes of
    its share the largest square; where one side is shorter than that, it stays whole.

    Raises:
        ValueError: m is smaller than the number of blocks, `smallest_m`.
    """
    matrices = [p for p in parameters if p.is_matrix]
    num_vectors = sum(p.rows * p.cols for p in parameters if not p.is_matrix)
    entries = [p.rows * p.cols for p in matrices] + ([num_vectors] if num_vectors else [])
    if m < len(entries):
        raise ValueError(f"m = {m} is not enough for {len(entries)} blocks")
    shares = _shares(entries, m)
    sides = tuple(_sides(p, int(share)) for p, share in zip(matrices, shares, strict=False))
    # a hashing into a power of two of buckets can be folded
    vectors = 0 if not num_vectors else _vector_size(num_vectors, int(shares[-1]))
    return KroneckerSizes(sides, vectors)


def fixed_sizes(parameters: Sequence[FlatParameter], cols: int, rows: int) -> KroneckerSizes:
    """Return the sizes with a = `cols` and b = `rows` for every matrix parameter, and vectors of a·b or fewer."""
    sides = tuple((min(rows, p.rows), min(cols, p.cols)) for p in parameters if p.is_matrix)
    num_vectors = sum(p.rows * p.cols for p in parameters if not p.is_matrix)
    return KroneckerSizes(sides, _vector_size(num_vectors, rows * cols) if num_vectors else 0)


def sizes_rule(ranks: tuple[int, int] | None) -> Callable[[Sequence[FlatParameter], int], KroneckerSizes]:
    """Return what says how many numbers a sketch of size m has of each parameter: `fixed_sizes` of (cols, rows) ranks.

    None stands for `shared_sizes`.
    """
    if ranks is None:
        return shared_sizes
    cols, rows = ranks
    return lambda parameters, _: fixed_sizes(parameters, cols, rows)


def smallest_m(parameters: Sequence[FlatParameter]) -> int:
    """Return the number of blocks: matrix parameters, and one for the vectors if there are any."""
    return sum(p.is_matrix for p in parameters) + any(not p.is_matrix for p in parameters)


def _shares(entries: list[int], m: int) -> list[float]:
    """Return 1 + c √entries for each block, at most its entries, with the c that spends m if that many are there."""
    shares = [1.0] * len(entries)
    open_blocks, left = list(range(len(entries))), float(m - len(entries))
    while open_blocks:
        weight = sum(entries[i] ** 0.5 for i in open_blocks)
        full = [i for i in open_blocks if 1 + left * entries[i] ** 0.5 / weight >= entries[i]]
        if not full:
            for i in open_blocks:
                shares[i] = 1 + left * entries[i] ** 0.5 / weight
            break
        for i in full:
            shares[i] = float(entries[i])
            left -= entries[i] - 1
            open_blocks.remove(i)
    return shares


def _sides(parameter: FlatParameter, share: int) -> tuple[int, int]:
    short, long = sorted((parameter.rows, parameter.cols))
    side = isqrt(share)
    if side >= short:
        sizes = (short, min(long, share // short))
    else:
        sizes = (side, side + 1 if side * (side + 1) <= share else side)
    return sizes if parameter.rows <= parameter.cols else sizes[::-1]


def _vector_size(num_vectors: int, share: int) -> int:
    """Return all of them where that many are allowed, else the largest power of two that is."""
    return num_vectors if share >= num_vectors else 1 << (share.bit_length() - 1)
