"""From samples to projected gradients: what a store is filled with, a few samples at a time.

A projection that needs the whole gradient of a sample goes through rows (`GradientRows`); one that is made of layer
inputs and errors alone never forms them, and is another `SampleProjection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from common.gradients.layer_capture import Routes, row_dtype
from common.gradients.layer_gradients import RowGradients
from common.gradients.lengths import row_lengths
from common.sketches.row_projection import RowProjection
from common.workloads.records import Examples, Loss
from common.workloads.running import trainable_parameters


@dataclass(frozen=True)
class ProjectedRows:
    """Projected gradients of some samples."""

    projected: Tensor
    """(b, m) float32 or float64 rows Pg."""
    norms: Tensor
    """(b,) float64 lengths of the gradients g themselves, not of their projections."""


class SampleProjection(Protocol):
    """Projected gradients of samples on the model's device; the same for a sample whatever samples are beside it."""

    m: int
    """Numbers a row."""
    rows_at_once: int
    """Samples that are best projected in one call."""

    def __call__(self, examples: Examples) -> ProjectedRows:
        """Return the projected gradients of at most `rows_at_once` samples, which lie on any device."""


class GradientRows:
    """Whole gradients, batch by batch, and P applied to as many of them as it likes at once.

    Memory: `rows_at_once` gradients, activations of a batch, and what the projection of rows needs.
    """

    def __init__(self, model: nn.Module, loss: Loss, routes: Routes, projection: RowProjection, batch_size: int):
        self._gradients = RowGradients(model, loss, routes)
        self._projection, self._batch_size = projection, batch_size
        self._device = next(iter(trainable_parameters(model).values())).device
        self._dtype = row_dtype(model)
        self.m, self.rows_at_once = projection.m, max(projection.rows_at_once, batch_size)
        self._rows = torch.empty(0, projection.num_columns, dtype=self._dtype, device=self._device)

    def __call__(self, examples: Examples) -> ProjectedRows:
        """Return the projected gradients of at most `rows_at_once` samples, which lie on any device."""
        if len(self._rows) < len(examples):
            self._rows = self._rows.new_empty(len(examples), self._rows.shape[1])
        rows = self._rows[: len(examples)]
        for start in range(0, len(examples), self._batch_size):
            batch = examples.subset(slice(start, start + self._batch_size)).to(self._device)
            self._gradients(batch, rows[start : start + len(batch)])
        return ProjectedRows(self._projection(rows), row_lengths(rows))
