"""From samples to projected gradients by their factors: no row of the size of the model exists."""

from __future__ import annotations

from torch import nn

from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors
from common.gradients.lengths import inverse_lengths
from common.sketches.factored import FactoredSketch
from common.sketches.sample_projection import ProjectedRows
from common.workloads.records import Examples, Loss


class FactorProjection:
    """One sketch of the factors of a batch of samples at a time.

    Memory: activations, inputs and errors of a batch, and what the sketch keeps of it.
    """

    def __init__(self, model: nn.Module, loss: Loss, routes: Routes, sketch: FactoredSketch, batch_size: int):
        self._factors = LayerFactors(model, loss, routes)
        self._sketch, self.rows_at_once = sketch, batch_size
        self._device = next(model.parameters()).device
        self.m = sketch.size(sketch.max_m)

    def __call__(self, examples: Examples) -> ProjectedRows:
        """Return the projected gradients of at most `rows_at_once` samples, which lie on any device."""
        shares = list(self._factors(examples.to(self._device)))
        squares = sum((share.squared_norms() for share in shares[1:]), shares[0].squared_norms())
        norms = squares.sqrt()
        rows = self._sketch.rows(shares, inverse_lengths(norms))
        projected = self._sketch.reduce(rows, self._sketch.max_m)
        # back in float64: a gradient may be so short that float32 has no room for its square
        return ProjectedRows(projected.double() * norms[:, None], norms)
