"""One pass over a store: the second moment S = ZᵀZ/n, sums of rows, and what rounding has done to the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.foundations.distributed import ALONE, Ranks
from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.gradients.gram import add_gram, mirror_lower_triangle
from common.stores.store import CHUNK_BYTES, Store, dtype_name

# a row whose rounding errors add up to more than this share of its length is called coarse
COARSE = 0.01
# mean square of a rounding error over the square of the number, u the unit roundoff: mantissas are spread like 1/x
RELATIVE_ROUNDING = (1 - 1 / 4) / (2 * math.log(2)) / 3
# share of the rows that are longer, and shorter, than what is usual
UNUSUAL = (0.025, 0.975)
# as many chunks as an audit has at a time, with the scores of them
CHUNKS = 12
HASH_SEED = 20_130_611


@dataclass(frozen=True)
class RowReport:
    """What the rows of a store look like as they are stored."""

    num_rows: int
    """n."""
    zero_rows: tuple[int, ...]
    """Rows that are all zero."""
    coarse_rows: tuple[int, ...]
    """Other rows whose numbers are so small that absolute rounding of the dtype exceeds 1 % of their length."""
    num_duplicates: int
    """Rows that repeat an earlier one bit by bit (zero rows apart)."""
    shortest: float
    """Smallest length of a row that is not zero, as stored; NaN where there is none."""
    longest: float
    """Largest length of a row, as stored."""
    usual: tuple[float, float]
    """Lengths that 2.5 % of the rows that are not zero fall short of and exceed, as stored; NaN where all are zero."""
    hashes: Tensor = field(compare=False)
    """(n,) int64 hashes of the rows, bit by bit."""


@dataclass(frozen=True)
class Moments:
    """What one pass over a store leaves in memory."""

    second: Tensor
    """(M, M) float64 S = ZᵀZ/n, of rows multiplied by their norms."""
    num_rows: int
    """n."""
    rounding: float
    """Mean square of the rounding error of one number of Z: what the stored dtype adds to every eigenvalue of S."""
    rows: RowReport
    """Zero, coarse and repeated rows."""
    sums: Tensor | None
    """(s, M) float64 weighted sums of the rows, where weights were given."""
    kept: Tensor
    """(c, M) float64 rows that were asked for, in that order."""


def collect(store: Store, weights: Tensor | None = None, keep: Tensor | None = None, ranks: Ranks = ALONE) -> Moments:
    """Return the moments of a store in one pass; memory M², a chunk, and what is asked for.

    Several ranks read a part of the chunks each, and all of them get the sums: M² + s·M + c·M + 3n numbers on the wire.

    Args:
        store: Z (n, M).
        weights: (s, n) weights of sums of rows, or None.
        keep: (c,) int64 rows to keep, repeated or in any order, or None.
        ranks: who shares the work.

    Raises:
        UserError: a number is NaN or infinite, every row is zero, or M x M matrices do not fit into memory.
    """
    size = store.num_columns
    check_memory(store, 0 if keep is None else len(keep))
    second = torch.zeros(size, size, dtype=torch.float64)
    sums = None if weights is None else torch.zeros(len(weights), size, dtype=torch.float64)
    keep = torch.empty(0, dtype=torch.int64) if keep is None else keep
    kept = torch.zeros(len(keep), size, dtype=torch.float64)
    rows = _RowCensus(store)
    share = ranks.rank, ranks.size
    with progress_bar("second moment", store.rows_dealt(*share), "row") as progress:
        for start, stored in store.raw_chunks(*share):
            rows.add(start, stored)
            exact = store.exact(start, stored)
            add_gram(second, exact.T)
            if sums is not None and weights is not None:
                sums += weights[:, start : start + len(exact)].double() @ exact
            here = (keep >= start) & (keep < start + len(exact))
            kept[here] = exact[keep[here] - start]
            progress.update(len(exact))
    mirror_lower_triangle(second)
    ranks.add_up(second, kept, *([] if sums is None else [sums]))
    rows.add_up(ranks)
    second /= store.num_rows
    report = rows.report()
    if len(report.zero_rows) == store.num_rows:
        raise UserError(f"{store.path}: every row is zero: there is nothing to audit")
    return Moments(second, store.num_rows, rows.rounding(), report, sums, kept)


def check_rows(store: Store) -> RowReport:
    """Return the census of a store alone, for queries, whose second moment nobody needs."""
    rows = _RowCensus(store)
    for start, stored in store.raw_chunks():
        rows.add(start, stored)
    return rows.report()


def fold(second: Tensor) -> Tensor:
    """Return the second moment of Z[:, :M/2] + Z[:, M/2:], a sketch of size M/2 of the same law.

    For a normal P with entries of variance 1/M, the sum of two independent rows has variance 1/(M/2); for an SJLT,
    buckets b and b + M/2 become one. Signs add up to −2, 0 or 2, which has the law of a sketch too, though not of a
    rademacher one. An odd last column is left out, and the scale made up for.
    """
    half = len(second) // 2
    first, last = slice(0, half), slice(half, 2 * half)
    cross = second[first, last]
    return (second[first, first] + second[last, last] + cross + cross.T) * (len(second) / (2 * half))


def fold_rows(rows: Tensor) -> Tensor:
    """Return (b, M/2) rows folded as `fold` folds their second moment."""
    half = rows.shape[1] // 2
    return (rows[:, :half] + rows[:, half : 2 * half]) * (rows.shape[1] / (2 * half)) ** 0.5


def check_memory(store: Store, num_kept: int = 0) -> None:
    """Raise UserError where an audit exceeds what memory there is.

    It has a few M x M float64 matrices, a few of the rows that are kept, queries among them, and some chunks.
    """
    matrices, rows = 5 * 8 * store.num_columns**2, 6 * 8 * num_kept * store.num_columns
    needed, there = matrices + rows + CHUNKS * CHUNK_BYTES, _memory()
    if needed > there:
        what, remedy = ("M x M matrices", "a store of fewer columns")
        if rows > matrices:
            what, remedy = (f"{num_kept} queries and sampled rows", "fewer queries")
        raise UserError(
            f"{store.path} has M = {store.num_columns} columns: {what} need {needed / 1e9:.1f} GB, there are "
            f"{there / 1e9:.1f} GB; use one module with --module, or {remedy}"
        )


def _memory() -> int:
    with open("/proc/meminfo", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable"))


class _RowCensus:
    """Counts of zero, coarse and repeated rows while they pass by."""

    def __init__(self, store: Store):
        self._store = store
        info = torch.finfo(store.dtype)
        self._spacing = info.smallest_normal * info.eps
        self._unit_roundoff = info.eps / 2
        generator = torch.Generator().manual_seed(HASH_SEED)
        self._multipliers = torch.randint(-(2**62), 2**62, (store.num_columns,), generator=generator) * 2 + 1
        self._lengths = torch.zeros(store.num_rows, dtype=torch.float64)
        self._hashes = torch.zeros(store.num_rows, dtype=torch.int64)
        self._mean_square, self._absolute = 0.0, 0.0

    def add(self, start: int, stored: Tensor) -> None:
        """Take in one chunk; UserError at the first number that is not finite."""
        rows = slice(start, start + len(stored))
        lengths = torch.linalg.vector_norm(stored, dim=1, dtype=torch.float64)
        if not lengths.isfinite().all():
            row = int((~lengths.isfinite()).nonzero()[0])
            self._refuse(start + row, stored[row])
        self._lengths[rows] = lengths
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.dtype.itemsize]
        # products and sums wrap around: a random linear function of the bits modulo 2^64
        self._hashes[rows] = (stored.contiguous().view(bits) * self._multipliers).sum(1)
        scale = 1.0 if self._store.norms is None else self._store.norms[rows].square()
        share = self._store.num_rows * stored.shape[1]
        self._mean_square += float((lengths.square() * scale).sum()) / share
        self._absolute += float(torch.as_tensor(scale, dtype=torch.float64).expand(len(stored)).sum()) / share

    def add_up(self, ranks: Ranks) -> None:
        """Take in what the other ranks have seen."""
        squares = torch.tensor([self._mean_square, self._absolute], dtype=torch.float64)
        ranks.add_up(self._lengths, self._hashes, squares)
        self._mean_square, self._absolute = squares.tolist()

    def rounding(self) -> float:
        """Return the mean square rounding error of one number: relative, and absolute among subnormal numbers."""
        relative = RELATIVE_ROUNDING * self._unit_roundoff**2 * self._mean_square
        return relative + self._spacing**2 / 12 * self._absolute * self._store.num_columns

    def report(self) -> RowReport:
        """Return the counts."""
        zero = self._lengths == 0
        error = self._spacing * (self._store.num_columns / 12) ** 0.5
        coarse = ~zero & (self._lengths < error / COARSE)
        there = self._lengths[~zero]
        _, counts = np.unique(self._hashes[~zero].numpy(), return_counts=True)
        return RowReport(
            num_rows=len(zero),
            zero_rows=tuple(zero.nonzero().flatten().tolist()),
            coarse_rows=tuple(coarse.nonzero().flatten().tolist()),
            num_duplicates=int((counts - 1).sum()),
            shortest=there.min().item() if len(there) else math.nan,
            longest=self._lengths.max().item(),
            usual=tuple(np.quantile(there.numpy(), UNUSUAL).tolist()) if len(there) else (math.nan, math.nan),
            hashes=self._hashes,
        )

    def _refuse(self, row: int, stored: Tensor) -> None:
        where = self._store.locate(row)
        if stored.isfinite().all():
            raise UserError(
                f"{where} holds {stored.abs().max().item():g}, whose square leaves float64; multiply training rows and "
                "queries by one number (λ goes with its square)"
            )
        column = int((~stored.isfinite()).nonzero()[0])
        limit = ""
        if self._store.dtype == torch.float16:
            limit = " (float16 ends at 65504: store in float32, or unit rows with their norms)"
        value, name = stored[column].item(), dtype_name(self._store.dtype)
        raise UserError(f"{where} holds {value} in column {column}: gradients must be finite {name} numbers{limit}")
