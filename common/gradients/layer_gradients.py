"""Per-sample gradients, their Gram matrix and their column blocks, from what each layer saw.

The gradient of one sample with respect to a (rows, cols) parameter is a sum of outer products, Σ_s e_s x_sᵀ over the
S positions (tokens, pixels) of the sample, with x the layer's input and e the error of its output. Inputs and errors
are often far smaller than their products, so all d columns of all N gradients can be worked through without ever
being held: a pass over the samples keeps the cheaper of factors and products for as many parameters as fit in memory.

Flat order of the d columns: trainable parameters in `model.named_parameters()` order, each row-major.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.foundations.progress import with_progress
from common.gradients.gram import add_gram, mirror_lower_triangle
from common.gradients.layer_calls import trainable_parameters
from common.gradients.layer_capture import Capture, LayerLayout, Loss, capture_layers
from common.gradients.layer_layout import cast, layer_layout, require_supported
from common.gradients.layer_products import (
    add_product_of_grams,
    empty_like,
    fill,
    grams_are_cheaper,
    in_float64,
    matrix_shape,
    select_rows,
    split_rows,
    write_products,
)
from common.workloads.records import Examples


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


def per_sample_gradients(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    layout: LayerLayout,
    out: Tensor | None = None,
) -> Tensor:
    """Return the (B, d) gradients of each sample's loss, in the model's dtype and on its device.

    `layout` comes from `layer_layout`. They are written into `out` where it is given: (B, d), same dtype and device.
    Needs the activations of one batch besides. Raises UserError when the layout has unsupported parameters.
    """
    require_supported(layout)
    parameters = trainable_parameters(model)
    dtype, device = _dtype_and_device(model)
    captures = capture_layers(model, loss, inputs, targets, layout)
    gradients = out if out is not None else torch.empty(len(inputs), _dim(parameters), dtype=dtype, device=device)
    start = 0
    for name, parameter in parameters.items():
        rows, cols = matrix_shape(parameter)
        block = gradients[:, start : start + rows * cols]
        write_products(captures.pop(name, []), slice(0, rows), cols, block)
        start += rows * cols
    return gradients


class LayerwiseGradients:
    """All gradients of some samples, recomputed whenever they are needed and never stored.

    `model` is in eval mode and stays as it is; `dtype` other than the model's means a copy of it in that dtype.
    Memory beside the model: at most `memory_bytes` of captures (N times a single row of a parameter where that is
    more), half as much for the activations and errors of a batch, whose samples are fewer than `batch_size` where that
    takes more (a single sample's at least), and the block or Gram matrix asked for. Where a single pass suffices its
    captures are kept, so that later calls need no pass at all.
    Raises UserError when some parameter is not supported (see `unsupported_parameters`).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        examples: Examples,
        batch_size: int = 32,
        dtype: torch.dtype | None = None,
        memory_bytes: int = 2 << 30,
        layout: LayerLayout | None = None,
    ):
        self._layout = layout or layer_layout(model, loss, examples)
        require_supported(self._layout)
        if dtype is not None and dtype != _dtype_and_device(model)[0]:
            model = copy.deepcopy(model).to(dtype)
        self._model, self._loss, self._examples = model, loss, examples
        self._parameters = trainable_parameters(model)
        self.num_rows: int = len(examples)
        self.dim: int = _dim(self._parameters)
        probe, sample_bytes = self._probe()
        self._batch_size = max(1, min(batch_size, memory_bytes // (2 * sample_bytes)))
        self._passes = _pack(self._pieces(probe, memory_bytes), self.num_rows, memory_bytes)
        self._kept: list[tuple[Piece, list[Capture]]] | None = None

    @property
    def num_passes(self) -> int:
        """Forward and backward passes over all samples that one call of `gram` or `column_blocks` takes."""
        return len(self._passes)

    @property
    def kept_bytes(self) -> int:
        """The largest number of bytes that the captures of one pass take."""
        return max(self.num_rows * sum(piece.bytes_per_sample for piece in pieces) for pieces in self._passes)

    def gram(self, block_bytes: int = 128 << 20) -> tuple[Tensor, Tensor]:
        """Return the Gram matrix of the unit-normalised gradients and the norms they had.

        unit_gram[i, j] = g_iᵀ g_j / (‖g_i‖ ‖g_j‖); a gradient that is exactly zero has norm 0 and a zero row.
        For layers with few positions, Σ_st (X_s X_tᵀ) ∘ (E_s E_tᵀ) takes the place of the product of their gradients.
        Returns (N, N) and (N,), float64 on the model's device. Products and sums are float64; besides the result this
        needs about 3 `block_bytes` (but N times a parameter's row at least) and 48 KB times N.
        """
        n = self.num_rows
        gram = torch.zeros(n, n, dtype=torch.float64, device=_dtype_and_device(self._model)[1])
        for piece, captures in self._sweep():
            if piece.keeps_factors and grams_are_cheaper(captures, piece.num_rows, piece.cols):
                add_product_of_grams(gram, captures[0])
                continue
            for _, block in self._blocks(piece, captures, block_bytes):
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
        device = _dtype_and_device(self._model)[1]
        for first in with_progress("gradients, row by row", range(0, self.num_rows, size), unit="batch"):
            batch = torch.empty(min(size, self.num_rows - first), self.dim, dtype=torch.float64, device=device)
            for start in range(0, len(batch), self._batch_size):
                part = batch[start : start + self._batch_size]
                captures = self._capture(slice(first + start, first + start + len(part)), None)
                self._write_exact(captures, part)
            yield first, batch

    def _write_exact(self, captures: dict[str, list[Capture]], out: Tensor) -> None:
        start = 0
        for name, parameter in self._parameters.items():
            rows, cols = matrix_shape(parameter)
            exact = [in_float64(capture) for capture in captures.get(name, [])]
            products = out.new_empty(len(out), rows * cols)
            write_products(exact, slice(0, rows), cols, products)
            out[:, start : start + rows * cols] = products
            start += rows * cols

    def _probe(self) -> tuple[dict[str, list[Capture]], int]:
        """Return the captures of one sample, and the bytes that its backward pass needs for activations and errors."""
        saved = {}

        def remember(tensor: Tensor) -> Tensor:
            saved[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            probe = self._capture(slice(0, 1), None)
        for parameter in self._model.parameters():
            saved.pop(parameter.data_ptr(), None)
        errors = sum(capture.errors.nbytes for captures in probe.values() for capture in captures)
        return probe, sum(saved.values()) + errors

    def _pieces(self, probe: dict[str, list[Capture]], memory_bytes: int) -> Iterator[Piece]:
        start = 0
        for name, parameter in self._parameters.items():
            rows, cols = matrix_shape(parameter)
            for part, factors, size in split_rows(
                probe.get(name, []), rows, cols, parameter.itemsize, memory_bytes // self.num_rows
            ):
                yield Piece(name, part, cols, start + part.start * cols, factors, size)
            start += rows * cols

    def _capture(self, samples: slice, wanted: set[str] | None) -> dict[str, list[Capture]]:
        dtype, device = _dtype_and_device(self._model)
        few = self._examples.subset(samples)
        inputs, targets = cast(few.inputs.to(device), dtype), few.targets.to(device)
        return capture_layers(self._model, self._loss, inputs, targets, self._layout, wanted)

    def _sweep(self) -> Iterator[tuple[Piece, list[Capture]]]:
        """Yield every piece with its captures for all N samples, in column order."""
        if self.num_passes == 1:
            if self._kept is None:
                self._kept = self._run_pass(self._passes[0], "gradients")
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
                if not store:
                    store.extend(empty_like(part, self.num_rows) for part in parts)
                for whole, part in zip(store, parts, strict=True):
                    fill(whole, part, samples)
        return list(zip(pieces, kept, strict=True))

    def _to_keep(self, piece: Piece, captures: list[Capture], batch: int) -> list[Capture]:
        if piece.keeps_factors:
            return [select_rows(capture, piece.rows) for capture in captures]
        dtype, device = _dtype_and_device(self._model)
        products = torch.empty(batch, piece.num_rows * piece.cols, dtype=dtype, device=device)
        write_products(captures, piece.rows, piece.cols, products)
        return [Capture("direct", None, products.view(batch, -1, piece.cols))]

    def _blocks(self, piece: Piece, captures: list[Capture], max_bytes: int) -> Iterator[tuple[int, Tensor]]:
        dtype, device = _dtype_and_device(self._model)
        step = max(1, max_bytes // (self.num_rows * piece.cols * dtype.itemsize))
        for first in range(0, piece.num_rows, step):
            rows = slice(first, min(first + step, piece.num_rows))
            width = (rows.stop - rows.start) * piece.cols
            block = torch.empty(self.num_rows, width, dtype=dtype, device=device)
            write_products(captures, rows, piece.cols, block)
            yield piece.start + first * piece.cols, block


def _pack(pieces: Iterator[Piece], num_rows: int, memory_bytes: int) -> list[list[Piece]]:
    """Return the pieces grouped, in order, into passes that each keep at most `memory_bytes`."""
    passes: list[list[Piece]] = [[]]
    used = 0
    for piece in pieces:
        size = num_rows * piece.bytes_per_sample
        if passes[-1] and used + size > memory_bytes:
            passes.append([])
            used = 0
        passes[-1].append(piece)
        used += size
    return passes


def _dim(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    parameter = next(model.parameters())
    return parameter.dtype, parameter.device
