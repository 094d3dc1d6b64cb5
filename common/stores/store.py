"""Projected gradients on disk, read a few rows at a time: memory never grows with the number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.foundations.errors import UserError

CHUNK_BYTES = 2**25
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Region:
    """A matrix inside a file, row by row without gaps."""

    path: Path
    """The file."""
    offset: int
    """Bytes before the first row."""
    num_rows: int
    """Rows."""
    num_columns: int
    """Numbers a row."""
    dtype: torch.dtype
    """float16, bfloat16, float32 or float64, little-endian."""

    def check(self) -> Region:
        """Return the region itself; UserError where the file is too short for it."""
        needed = self.offset + self.num_rows * self._row_bytes
        there = self.path.stat().st_size
        if there < needed:
            shape = f"{self.num_rows} x {self.num_columns} numbers of {dtype_name(self.dtype)}"
            raise UserError(f"{self.path} is truncated: {shape} need {needed} bytes, and there are {there}")
        return self

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows start .. stop−1 as stored."""
        count = (stop - start) * self._row_bytes
        # plain reads: pages of a memory map would count as memory of this process
        raw = np.fromfile(self.path, np.uint8, count, offset=self.offset + start * self._row_bytes)
        return torch.from_numpy(raw).view(self.dtype).reshape(stop - start, self.num_columns)

    @property
    def _row_bytes(self) -> int:
        return self.num_columns * self.dtype.itemsize


@dataclass(frozen=True)
class Module:
    """Columns that belong to one module or parameter of the model."""

    name: str
    """As the store has it."""
    start: int
    """First column."""
    stop: int
    """Column behind the last one."""


@dataclass(frozen=True)
class Store:
    """Projected gradients: Z (n x M), one row a sample, Z = c G Pᵀ for a scale c that nobody needs to know."""

    path: Path
    """What the user has named."""
    format: str
    """One of `formats.FORMATS`."""
    tables: tuple[tuple[Region, ...], ...]
    """Regions one below the other in each table; tables side by side, all with the same rows."""
    modules: tuple[Module, ...] = ()
    """Columns by module, where the store has that; empty where it has not."""
    projection: str | None = None
    """Law of P where the store says so: normal, rademacher, sjlt, kronecker or blocks (one projection a module)."""
    rows: range | None = None
    """Rows that are used; None for all."""
    columns: range | None = None
    """Columns that are used; None for all."""
    norms: Tensor | None = None
    """(n,) float64 lengths that multiply the (selected) rows of a store of unit rows; None for none."""
    made_of: dict[str, Any] | None = None
    """Matrix and model behind the rows, for comparison with those of another store; None where nothing says."""
    most_rows: int | None = None
    """Rows that a chunk has at most; None for as many as `CHUNK_BYTES` hold."""

    @property
    def num_rows(self) -> int:
        """Return n, the rows that are used."""
        return len(self._range)

    @property
    def num_columns(self) -> int:
        """Return M, the columns that are used."""
        return self._width if self.columns is None else len(self.columns)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the stored numbers."""
        return self.tables[0][0].dtype

    def chunk_starts(self, rank: int = 0, size: int = 1) -> range:
        """Return the first row of each chunk that is dealt to one of several processes."""
        height = self.chunk_height
        return range(rank * height, self.num_rows, size * height)

    def rows_dealt(self, rank: int, size: int) -> int:
        """Return how many rows the chunks of one of several processes have."""
        return sum(min(self.chunk_height, self.num_rows - start) for start in self.chunk_starts(rank, size))

    def raw_chunks(self, rank: int = 0, size: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (b, M) rows as stored) in order; rows count from 0 among those that are used.

        Of several processes each reads the chunks that are dealt to it.
        """
        rows = self._range
        for start in self.chunk_starts(rank, size):
            part = rows[start : start + self.chunk_height]
            # a range with a step is read with the rows between, which are cheaper than one seek a row
            block = torch.cat([self._read(table, part[0], part[-1] + 1) for table in self.tables], dim=1)
            used = slice(None) if self.columns is None else slice(self.columns.start, self.columns.stop)
            yield start, block[:: rows.step, used]

    def chunks(self, rank: int = 0, size: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (b, M) float64 rows, multiplied by their norms where there are any), as `raw_chunks`."""
        for start, stored in self.raw_chunks(rank, size):
            yield start, self.exact(start, stored)

    def exact(self, start: int, stored: Tensor) -> Tensor:
        """Return the float64 rows that `stored`, a chunk from row `start` on, stands for."""
        rows = stored.double()
        return rows if self.norms is None else rows * self.norms[start : start + len(rows), None]

    def locate(self, row: int) -> str:
        """Say where row `row` (of those that are used) lies: for messages."""
        position = self._range[row]
        for region in self.tables[0]:
            if position < region.num_rows:
                return f"row {position} of {region.path}"
            position -= region.num_rows
        raise IndexError(row)

    def select(self, rows: slice | None = None, module: str | None = None) -> Store:
        """Return the store of some rows, of one module's columns, or both.

        Raises:
            UserError: no row is left, or there is no such module.
        """
        chosen = self
        if rows is not None:
            chosen = replace(chosen, rows=range(*rows.indices(self._height)))
            if not chosen.num_rows or chosen._range.step < 1:
                raise UserError(f"--rows {_show(rows)} leaves none of the {self._height} rows of {self.path}")
            if self.norms is not None:
                chosen = replace(chosen, norms=self.norms[list(chosen._range)])
        if module is not None:
            found = [m for m in self.modules if m.name == module]
            if not found:
                known = ", ".join(m.name for m in self.modules[:20]) or "none"
                raise UserError(f"--module {module}: {self.path} has no such module; there are: {known}")
            single = "kronecker" if self.projection == "kronecker" else None
            chosen = replace(chosen, columns=range(found[0].start, found[0].stop), modules=(), projection=single)
        return chosen

    def with_norms(self, norms: Tensor) -> Store:
        """Return the store with (n,) lengths of all its rows, selected or not."""
        return replace(self, norms=norms.double()[self._range.start : self._range.stop : self._range.step])

    def in_chunks_of(self, most_rows: int) -> Store:
        """Return the store with chunks of at most so many rows."""
        return replace(self, most_rows=most_rows)

    @property
    def _range(self) -> range:
        return range(self._height) if self.rows is None else self.rows

    @property
    def chunk_height(self) -> int:
        """Return how many rows a chunk has, but for the last one."""
        height = max(1, CHUNK_BYTES // (8 * self._width * abs(self._range.step)))
        return height if self.most_rows is None else min(height, self.most_rows)

    @property
    def _height(self) -> int:
        return sum(region.num_rows for region in self.tables[0])

    @property
    def _width(self) -> int:
        return sum(table[0].num_columns for table in self.tables)

    @staticmethod
    def _read(table: tuple[Region, ...], start: int, stop: int) -> Tensor:
        pieces, before = [], 0
        for region in table:
            first, last = max(start - before, 0), min(stop - before, region.num_rows)
            if first < last:
                pieces.append(region.read(first, last))
            before += region.num_rows
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def make_store(path: Path, format_name: str, tables: list[list[Region]], **more) -> Store:
    """Return a store whose files are long enough and fit together.

    Raises:
        UserError: a file is truncated, nothing is stored, or parts differ in shape or dtype.
    """
    store = Store(path, format_name, tuple(tuple(region.check() for region in table) for table in tables), **more)
    regions = [region for table in store.tables for region in table]
    for region in regions:
        if region.dtype != store.dtype:
            names = f"{dtype_name(store.dtype)} and {dtype_name(region.dtype)}"
            raise UserError(f"{path}: parts of one store have the dtypes {names}; they must have one")
    for table in store.tables:
        widths = {region.num_columns for region in table}
        if len(widths) > 1:
            raise UserError(f"{path}: parts of one store have {' and '.join(map(str, sorted(widths)))} columns")
        if sum(region.num_rows for region in table) != store.num_rows:
            raise UserError(f"{path}: modules of one store have different numbers of rows")
    if not store.num_rows or not store.num_columns:
        raise UserError(f"{path} holds {store.num_rows} x {store.num_columns} numbers: nothing to audit")
    return store


def dtype_name(dtype: torch.dtype) -> str:
    """Return float16, bfloat16, ... for messages."""
    return str(dtype).removeprefix("torch.")


def as_dtype(name: str, path: Path) -> torch.dtype:
    """Return the torch dtype called `name`; UserError for what no gradients are stored in."""
    dtype = {dtype_name(known): known for known in FLOATING}.get(name)
    if dtype is None:
        allowed = ", ".join(dtype_name(known) for known in FLOATING)
        raise UserError(f"{path} holds numbers of type {name}; gradients must be one of {allowed}")
    return dtype


def _show(rows: slice) -> str:
    parts = [rows.start, rows.stop] + ([rows.step] if rows.step is not None else [])
    return ":".join("" if part is None else str(part) for part in parts)
