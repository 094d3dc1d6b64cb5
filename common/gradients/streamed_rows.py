"""Gradients that pass by a group of samples at a time, recomputed at every pass and never kept.

Memory is that of the model, a batch and a group, whatever the number of samples: for what needs no inner products of
all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.foundations.progress import progress_bar
from common.gradients.layer_capture import Routes, row_dtype
from common.gradients.layer_gradients import RowGradients
from common.gradients.lengths import scale_to_unit_length
from common.workloads.records import Examples, Loss

if TYPE_CHECKING:
    from common.gradients.row_checks import RowCheck


class StreamedGradients:
    """N per-sample gradients of d parameters, in groups of rows; their lengths are known after a pass over all."""

    def __init__(
        self, model: nn.Module, loss: Loss, routes: Routes, examples: Examples, batch_size: int, device: torch.device
    ):
        self.num_rows = len(examples)
        self.num_columns = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.device = device
        self.norms = torch.zeros(self.num_rows, dtype=torch.float64, device=device)
        self.check: RowCheck | None = None
        self._dtype = row_dtype(model)
        self._compute, self._examples = RowGradients(model, loss, routes), examples
        self._batch_size = batch_size

    def unit_groups(self, size: int, samples: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ((b,) int64 samples, (b, d) gradients scaled to unit length), b <= size; zero rows stay zero.

        `samples` restricts the pass to some of them, in that order. A pass over all sets `norms`. The rows are
        overwritten by those that follow; they are float64 where a trained parameter is, else float32.
        """
        chosen = torch.arange(self.num_rows) if samples is None else samples.cpu()
        rows = torch.empty(min(size, len(chosen)), self.num_columns, dtype=self._dtype, device=self.device)
        with progress_bar("gradients", len(chosen), "sample") as bar:
            for group in chosen.split(size):
                for some, part in zip(group.split(self._batch_size), rows.split(self._batch_size), strict=False):
                    lengths = scale_to_unit_length(self._compute(self._batch(some), part[: len(some)]))
                    if samples is None:
                        self.norms[some.to(self.device)] = lengths
                    bar.update(len(some))
                yield group, rows[: len(group)]

    def inner_products(self, rows: Tensor) -> Tensor:
        """Return the (k, k) float64 inner products of (k,) int64 rows scaled to unit length; zero rows stay zero."""
        ((_, chosen),) = self.unit_groups(len(rows), rows)
        exact = chosen.double()
        return exact @ exact.T

    def _batch(self, samples: Tensor) -> Examples:
        return self._examples.subset(samples).to(self.device)
