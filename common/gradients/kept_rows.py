"""Where per-sample gradients are kept: stored on the device, in RAM or in a file, or recomputed at every use.

Whoever reads them gets rows scaled to unit length, by column blocks; the lengths stand beside them. Gradients of a
trained model spread over ten orders of magnitude, and inner products of the shortest would drown in the rounding of
the longest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol

import torch
from torch import Tensor

from common.foundations.progress import with_progress
from common.gradients.gram import add_gram, mirror_lower_triangle
from common.gradients.layer_gradients import LayerwiseGradients
from common.gradients.lengths import SHORT, inverse_lengths, scale_to_unit_length

if TYPE_CHECKING:
    from common.gradients.row_checks import RowCheck

BLOCK_BYTES = 2**26
ROWS_BYTES = 2**27
BATCH_BYTES = 2**25  # few enough to stay in a cache while they are scaled and projected
# one cache line of float32: a column of so many rows is read and added at once by a sparse projection
LINE_ROWS = 16


class Gradients(Protocol):
    """N per-sample gradients of d parameters."""

    num_rows: int
    """N."""
    num_columns: int
    """d."""
    norms: Tensor
    """(N,) float64 lengths of the gradients."""
    check: RowCheck | None
    """What a comparison of some of them with plain autograd has found; None where an earlier run has made it."""

    def unit_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, (N, b) float32 block) of the rows scaled to unit length; zero rows stay zero."""

    def unit_rows(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (b, d) float64 rows scaled to unit length); zero rows stay zero."""

    def unit_batches(self, samples: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (places, (b, d) float32 rows scaled to unit length) of (k,) int64 samples; None: of all N.

        Zero rows stay zero.
        """

    def unit_gram(self) -> Tensor:
        """Return the (N, N) float64 Gram matrix of the rows scaled to unit length."""

    def inner_products(self, rows: Tensor) -> Tensor:
        """Return the (k, k) float64 inner products of (k,) int64 rows scaled to unit length."""


class StoredGradients:
    """Gradients kept on the device, in RAM, or in a file that whoever opened it closes.

    Rows are stored with root mean square 1, so that 16-bit numbers neither overflow nor vanish.
    """

    def __init__(
        self,
        num_rows: int,
        num_columns: int,
        offload: str,
        dtype: torch.dtype,
        device: torch.device,
        file: BinaryIO | None = None,
    ):
        self.num_rows, self.num_columns, self.device = num_rows, num_columns, device
        self.norms = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self.check: RowCheck | None = None
        self._rows: _FileRows | _RamRows
        if offload != "disk":
            where = device if offload == "none" else "cpu"
            self._rows = _RamRows(torch.empty(num_rows, num_columns, dtype=dtype, device=where))
        elif file is not None:
            self._rows = _FileRows(file, num_rows, num_columns, dtype)
        else:
            raise ValueError("gradients on disk need a file")

    def write(self, start: int, gradients: Tensor) -> None:
        """Store (B, d) gradients as rows start, start + 1, ..."""
        for row, gradient in enumerate(gradients, start):
            exact = gradient.double()
            self.norms[row] = exact.norm()
            self._rows.write(row, exact[None] * (self.num_columns**0.5 * inverse_lengths(self.norms[row])))

    def unit_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, (N, b) float32 block) of the rows scaled to unit length; zero rows stay zero."""
        width = max(1, BLOCK_BYTES // (4 * self.num_rows))
        for start in range(0, self.num_columns, width):
            block = self._rows.read(start, min(start + width, self.num_columns)).to(self.device)
            yield start, block.float() / self.num_columns**0.5

    def unit_rows(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (b, d) float64 rows scaled to unit length); zero rows stay zero."""
        size = rows_a_batch(self.num_columns)
        for start in range(0, self.num_rows, size):
            rows = self._rows.read_rows(start, min(start + size, self.num_rows)).to(self.device).double()
            # storage rounds, so stored rows have unit length only to about the precision of their dtype
            yield start, rows * inverse_lengths(rows.norm(dim=1))[:, None]

    def unit_batches(self, samples: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (places, (b, d) float32 rows scaled to unit length) of (k,) int64 samples; None: of all N.

        Zero rows stay zero.
        """
        for places, some in _batches(self, samples):
            rows = torch.stack([self._rows.read_row(row) for row in some.tolist()]).to(self.device)
            yield places, rows.float() / self.num_columns**0.5

    def unit_gram(self) -> Tensor:
        """Return the (N, N) float64 Gram matrix of the rows scaled to unit length; zero rows stay zero."""
        gram = torch.zeros(self.num_rows, self.num_rows, dtype=torch.float64, device=self.device)
        blocks = with_progress("Gram matrix", self.unit_blocks(), "block")
        for _, block in blocks:
            add_gram(gram, block)
        mirror_lower_triangle(gram)
        # storage rounds, so stored rows have unit length only to about the precision of their dtype
        scale = inverse_lengths(gram.diagonal().sqrt())
        return gram * scale[:, None] * scale

    def inner_products(self, rows: Tensor) -> Tensor:
        """Return the (k, k) float64 inner products of (k,) int64 rows scaled to unit length; zero rows stay zero."""
        chosen = torch.stack([self._rows.read_row(row) for row in rows.tolist()]).to(self.device).double()
        chosen *= inverse_lengths(chosen.norm(dim=1))[:, None]
        return chosen @ chosen.T


class RecomputedGradients:
    """Gradients that are never stored: every use recomputes them layer by layer.

    Where `norms` are not given, they come with the Gram matrix, which is computed at once; for d < N, where nobody
    needs that matrix, from a pass over the rows.
    """

    def __init__(self, layerwise: LayerwiseGradients, norms: Tensor | None = None):
        self._layerwise = layerwise
        self.num_rows, self.num_columns = layerwise.num_rows, layerwise.dim
        self.check: RowCheck | None = None
        self._gram: Tensor | None = None
        if norms is not None:
            self.norms = norms
        elif self.num_columns < self.num_rows:
            self.norms = torch.cat([rows.norm(dim=1) for _, rows in self._rows()])
        else:
            self._gram, self.norms = layerwise.gram()

    def unit_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, (N, b) float32 block) of the rows scaled to unit length; zero rows stay zero."""
        short = torch.nonzero((self.norms < SHORT) & (self.norms > 0)).flatten()
        scale = inverse_lengths(torch.where(self.norms < SHORT, 0, self.norms))[:, None]
        for start, block in self._layerwise.column_blocks(BLOCK_BYTES):
            unit = block.float() * scale.float()
            # scaled in float64: 1e-40 may be an entry of a gradient, but not of a float32 product
            unit[short] = (block[short].double() / self.norms[short, None]).float()
            yield start, unit

    def unit_rows(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (b, d) float64 rows scaled to unit length); zero rows stay zero."""
        for start, rows in self._rows():
            yield start, rows * inverse_lengths(rows.norm(dim=1))[:, None]

    def unit_batches(self, samples: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (places, (b, d) float32 rows scaled to unit length) of (k,) int64 samples; None: of all N.

        Zero rows stay zero.
        """
        self._layerwise.keep()
        for places, some in _batches(self, samples):
            rows = self._layerwise.rows_of(some, self._layerwise.dtype)
            scale_to_unit_length(rows)
            yield places, rows.float()

    def _rows(self) -> Iterator[tuple[int, Tensor]]:
        return self._layerwise.row_batches(rows_a_batch(self.num_columns))

    def unit_gram(self) -> Tensor:
        """Return the (N, N) float64 Gram matrix of the rows scaled to unit length; zero rows stay zero."""
        return self._layerwise.gram()[0] if self._gram is None else self._gram

    def inner_products(self, rows: Tensor) -> Tensor:
        """Return the (k, k) float64 inner products of (k,) int64 rows scaled to unit length; zero rows stay zero."""
        if self._gram is not None:
            rows = rows.to(self._gram.device)
            return self._gram[rows][:, rows]
        chosen = self._layerwise.rows_of(rows)
        chosen *= inverse_lengths(chosen.norm(dim=1))[:, None]
        return chosen @ chosen.T


class _RamRows:
    def __init__(self, storage: Tensor):
        self._storage = storage

    def write(self, start: int, rows: Tensor) -> None:
        self._storage[start : start + len(rows)] = rows.to(self._storage.device)

    def read(self, start: int, stop: int) -> Tensor:
        return self._storage[:, start:stop]

    def read_rows(self, start: int, stop: int) -> Tensor:
        return self._storage[start:stop]

    def read_row(self, row: int) -> Tensor:
        return self._storage[row]


class _FileRows:
    """Rows in a binary file.

    Read with plain reads, not through a memory map, whose pages would count as memory of this process.
    """

    def __init__(self, file: BinaryIO, num_rows: int, num_columns: int, dtype: torch.dtype):
        self._file, self._shape, self._dtype = file, (num_rows, num_columns), dtype

    def write(self, start: int, rows: Tensor) -> None:
        self._file.seek(start * self._shape[1] * self._dtype.itemsize)
        self._file.write(rows.to(self._dtype).cpu().contiguous().view(torch.uint8).numpy().data)

    def read(self, start: int, stop: int) -> Tensor:
        num_rows, num_columns = self._shape
        block = torch.empty(num_rows, stop - start, dtype=self._dtype)
        rows = block.view(torch.uint8).numpy()
        for i, row in enumerate(rows):
            offset = (i * num_columns + start) * self._dtype.itemsize
            if os.preadv(self._file.fileno(), [row.data], offset) != row.nbytes:
                raise OSError(f"{self._file.name} ends early")
        return block

    def read_rows(self, start: int, stop: int) -> Tensor:
        return self._read_rows(self._file, start, stop)

    def read_row(self, row: int) -> Tensor:
        self._file.flush()
        # a file that is being written cannot be read through the handle that writes it
        with open(self._file.name, "rb") as file:
            return self._read_rows(file, row, row + 1)[0]

    def _read_rows(self, file: BinaryIO, start: int, stop: int) -> Tensor:
        rows = torch.empty(stop - start, self._shape[1], dtype=self._dtype)
        buffer = rows.view(torch.uint8).numpy().reshape(-1)
        offset, done = start * self._shape[1] * self._dtype.itemsize, 0
        while done < buffer.nbytes:
            got = os.preadv(file.fileno(), [buffer[done:].data], offset + done)
            if got == 0:
                raise OSError(f"{file.name} ends early")
            done += got
        return rows


def _batches(gradients: Gradients, samples: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield (places, samples) of batches of at most 32 MiB of float32 rows, or 16 rows: fewer take as long."""
    samples = torch.arange(gradients.num_rows) if samples is None else samples
    size = max(LINE_ROWS, BATCH_BYTES // (4 * gradients.num_columns) // LINE_ROWS * LINE_ROWS)
    for start in with_progress("gradients", range(0, len(samples), size), unit="batch"):
        places = slice(start, min(start + size, len(samples)))
        yield places, samples[places]


def rows_a_batch(num_columns: int) -> int:
    """Return how many float64 rows make a batch: enough for products of d x d matrices to be worth their traffic."""
    return max(1, ROWS_BYTES // (8 * num_columns))
