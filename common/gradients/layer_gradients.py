"""Per-sample gradients, their Gram matrix and their column blocks, from what each layer saw.

The gradient of one sample with respect to a (rows, cols) parameter is a sum of outer products, Σ_s e_s x_sᵀ over the
S positions (tokens, pixels) of the sample, with x the layer's input and e the error of its output. Inputs and errors
are often far smaller than their products, so all d columns of all N gradients can be worked through without ever
being held: a pass over the samples keeps the cheaper of factors and products for as many parameters as fit in memory.

Flat order of the d columns: trainable parameters in `model.named_parameters()` order, each row-major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.foundations.packing import packed
from common.foundations.progress import with_progress
from common.gradients.gram import add_gram, mirror_lower_triangle
from common.gradients.layer_capture import LayerCapture, Routes, row_dtype
from common.gradients.layer_products import (
    add_product_of_grams,
    cheaper_by_grams,
    place,
    select_rows,
    shared_channels,
    split_rows,
    write_products,
)
from common.gradients.layer_shares import Capture, Convolution, Direct, matrix_shape
from common.workloads.precision import in_dtype, match_inputs
from common.workloads.records import Examples, Loss
from common.workloads.running import trainable_parameters


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one parameter, worked through in one pass over the samples."""

    name: str
    """Parameter."""
    rows: slice
    """Rows of the parameter viewed as (rows, cols)."""
    cols: int
    """Columns of that view."""
    start: int
    """First column of the flat gradient that belongs to the piece."""
    keeps_factors: bool
    """Whether inputs and errors are kept, or the gradients themselves."""
    bytes_per_sample: int
    """What is kept for one sample."""

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return self.rows.stop - self.rows.start


class RowGradients:
    """Rows of per-sample gradients, batch by batch."""

    def __init__(self, model: nn.Module, loss: Loss, routes: Routes):
        self._capture = LayerCapture(model, loss, routes)
        self._parameters = trainable_parameters(model)

    def __call__(self, batch: Examples, out: Tensor | None = None) -> Tensor:
        """Return the (B, d) gradients of each sample's loss, float32 or float64, on the model's device.

        They are written into `out` where it is given: (B, d), same dtype and device. Needs the activations of the
        batch besides.
        """
        captures = self._capture(batch)
        size = len(batch), _dim(self._parameters)
        device = next(iter(self._parameters.values())).device
        gradients = out if out is not None else torch.empty(size, dtype=self._capture.dtype, device=device)
        _write_rows(captures, self._parameters, gradients)
        return gradients


class LayerwiseGradients:
    """All gradients of some samples, recomputed whenever they are needed and never stored.

    `model` is in eval mode and stays as it is; `dtype` other than the model's means a copy of it in that dtype.
    Memory beside the model: at most `memory_bytes` of captures (N times a single row of a parameter where that is
    more), a quarter of it for the activations and errors of a batch, whose samples are fewer than `batch_size` where
    that takes more (a single sample's at least), and the block or Gram matrix asked for. Where a single pass suffices
    its captures are kept, so that later calls need no pass at all.
    Parameters that are not followed layer by layer are kept as gradients, never as factors.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        examples: Examples,
        batch_size: int = 32,
        dtype: torch.dtype | None = None,
        memory_bytes: int = 4 << 30,
        routes: Routes | None = None,
    ):
        if dtype is not None and dtype != row_dtype(model):
            model, examples = in_dtype(model, dtype), match_inputs(examples, dtype)
        self._capture_layers = LayerCapture(model, loss, routes or Routes())
        self.dtype: torch.dtype = self._capture_layers.dtype
        self._model, self._examples = model, examples
        self._parameters = trainable_parameters(model)
        self._device = next(iter(self._parameters.values())).device
        self.num_rows: int = len(examples)
        self.dim: int = _dim(self._parameters)
        probe, sample_bytes = self._capture_layers.probe(examples.subset(slice(1)).to(self._device))
        self._batch_size = max(1, min(batch_size, memory_bytes // (4 * sample_bytes)))
        pieces = self._pieces(probe, memory_bytes)
        self._passes = packed(pieces, lambda piece: self.num_rows * piece.bytes_per_sample, memory_bytes)
        self._kept: list[tuple[Piece, list[Capture]]] | None = None

    @property
    def num_passes(self) -> int:
        """Forward and backward passes over all samples that one call of `gram` or `column_blocks` takes."""
        return len(self._passes)

    @property
    def kept_bytes(self) -> int:
        """The largest number of bytes that the captures of one pass take."""
        return max(self.num_rows * sum(piece.bytes_per_sample for piece in pieces) for pieces in self._passes)

    def keep(self) -> None:
        """Run the pass over the samples whose captures are kept, where a single pass suffices and none was run yet."""
        if self.num_passes == 1 and self._kept is None:
            self._kept = self._run_pass(self._passes[0], "gradients")

    def gram(self, block_bytes: int = 128 << 20) -> tuple[Tensor, Tensor]:
        """Return the Gram matrix of the unit-normalised gradients and the norms they had.

        unit_gram[i, j] = g_iᵀ g_j / (‖g_i‖ ‖g_j‖); a gradient that is exactly zero has norm 0 and a zero row.
        For layers with few positions, Σ_st (X_s X_tᵀ) ∘ (E_s E_tᵀ) takes the place of the product of their gradients.
        Returns (N, N) and (N,), float64 on the model's device. Products and sums are float64; besides the result this
        needs about 3 `block_bytes` (but N times a parameter's row at least) and 48 KB times N.
        """
        n = self.num_rows
        gram = torch.zeros(n, n, dtype=torch.float64, device=self._device)
        for piece, captures in self._sweep():
            linear = cheaper_by_grams(captures, piece.num_rows, piece.cols) if piece.keeps_factors else None
            if linear is not None:
                add_product_of_grams(gram, linear)
                continue
            for block in self._blocks_in_any_order(piece, captures, block_bytes):
                add_gram(gram, block)
        norms = gram.diagonal().sqrt()
        inverse = torch.where(norms == 0, 0.0, 1 / norms)
        gram.mul_(inverse[:, None]).mul_(inverse)
        mirror_lower_triangle(gram)
        return gram, norms

    def column_blocks(self, max_bytes: int = 128 << 20) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, (N, b) block) over all columns of the gradient matrix, in ascending order.

        A block holds whole rows of one parameter and at most `max_bytes`, or a single such row where that is more.
        """
        for piece, captures in self._sweep():
            yield from self._blocks(piece, captures, max_bytes)

    def row_batches(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (b, d) float64 gradients) over all samples, `size` rows at a time.

        Inputs and errors have the model's dtype, their products and sums are float64.
        """
        for first in with_progress("gradients, row by row", range(0, self.num_rows, size), unit="batch"):
            yield first, self.rows_of(torch.arange(first, min(first + size, self.num_rows)))

    def rows_of(self, samples: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the (k, d) gradients of (k,) int64 samples; their products and sums are of `dtype`."""
        rows = torch.empty(len(samples), self.dim, dtype=dtype, device=self._device)
        for part, some in zip(rows.split(self._batch_size), samples.split(self._batch_size), strict=True):
            if self._kept is None:
                _write_rows(self._capture(some, None), self._parameters, part)
                continue
            here = some.to(self._device)
            for piece, captures in self._kept:
                size = piece.num_rows * piece.cols
                chosen = [capture.of_samples(here).to(dtype) for capture in captures]
                write_products(chosen, slice(0, piece.num_rows), piece.cols, part[:, piece.start : piece.start + size])
        return rows

    def _pieces(self, probe: dict[str, list[Capture]], memory_bytes: int) -> Iterator[Piece]:
        start = 0
        for name, parameter in self._parameters.items():
            rows, cols = matrix_shape(parameter)
            for part, factors, size in split_rows(
                probe.get(name, []), rows, cols, self.dtype.itemsize, memory_bytes // self.num_rows
            ):
                yield Piece(name, part, cols, start + part.start * cols, factors, size)
            start += rows * cols

    def _capture(self, samples: slice | Tensor, wanted: set[str] | None) -> dict[str, list[Capture]]:
        return self._capture_layers(self._examples.subset(samples).to(self._device), wanted)

    def _sweep(self) -> Iterator[tuple[Piece, list[Capture]]]:
        """Yield every piece with its captures for all N samples, in column order."""
        self.keep()
        if self._kept is not None:
            yield from self._kept
            return
        for number, pieces in enumerate(self._passes, start=1):
            swept = self._run_pass(pieces, f"gradients, pass {number} of {self.num_passes}")
            while swept:  # no reference to an earlier pass may outlive the start of the next
                yield swept.pop(0)

    def _run_pass(self, pieces: list[Piece], title: str) -> list[tuple[Piece, list[Capture]]]:
        kept: list[list[Capture]] = [[] for _ in pieces]
        wanted = {piece.name for piece in pieces}
        starts = range(0, self.num_rows, self._batch_size)
        for start in with_progress(title, starts, unit="batch"):
            samples = slice(start, min(start + self._batch_size, self.num_rows))
            captures = self._capture(samples, wanted)
            for store, piece in zip(kept, pieces, strict=True):
                parts = self._to_keep(piece, captures.get(piece.name, []), samples.stop - samples.start)
                place(store, parts, samples, self.num_rows)
        return list(zip(pieces, kept, strict=True))

    def _to_keep(self, piece: Piece, captures: list[Capture], batch: int) -> list[Capture]:
        if piece.keeps_factors:
            return [select_rows(capture, piece.rows) for capture in captures]
        products = torch.empty(batch, piece.num_rows * piece.cols, dtype=self.dtype, device=self._device)
        write_products(captures, piece.rows, piece.cols, products)
        return [Direct(products.view(batch, -1, piece.cols))]

    def _blocks(self, piece: Piece, captures: list[Capture], max_bytes: int) -> Iterator[tuple[int, Tensor]]:
        step = max(1, max_bytes // (self.num_rows * piece.cols * self.dtype.itemsize))
        for first in range(0, piece.num_rows, step):
            rows = slice(first, min(first + step, piece.num_rows))
            width = (rows.stop - rows.start) * piece.cols
            block = torch.empty(self.num_rows, width, dtype=self.dtype, device=self._device)
            write_products(captures, rows, piece.cols, block)
            yield piece.start + first * piece.cols, block

    def _blocks_in_any_order(self, piece: Piece, captures: list[Capture], max_bytes: int) -> Iterator[Tensor]:
        """Yield all columns of a piece: of a convolution channel by channel, so that patches are unfolded only once."""
        channels = shared_channels(captures)
        width = piece.num_rows * piece.cols // channels if channels else 0
        step = max_bytes // (self.num_rows * width * self.dtype.itemsize) if channels else 0
        if not step:
            yield from (block for _, block in self._blocks(piece, captures, max_bytes))
            return
        for first in range(0, channels, step):
            some = slice(first, min(first + step, channels))
            count = some.stop - some.start
            block = torch.empty(self.num_rows, count * width, dtype=self.dtype, device=self._device)
            parts: list[Capture] = [
                capture.of_channels(some) for capture in captures if isinstance(capture, Convolution)
            ]
            write_products(parts, slice(0, piece.num_rows), count * piece.cols // channels, block)
            yield block


def _write_rows(captures: dict[str, list[Capture]], parameters: dict[str, nn.Parameter], out: Tensor) -> None:
    """Fill (B, d) `out` with gradients, in its dtype; captures are given up on the way."""
    start = 0
    for name, parameter in parameters.items():
        rows, cols = matrix_shape(parameter)
        own = [capture.to(out.dtype) for capture in captures.pop(name, [])]
        write_products(own, slice(0, rows), cols, out[:, start : start + rows * cols])
        start += rows * cols


def _dim(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())
