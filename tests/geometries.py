"""Geometries of gradients that tests have made."""

from __future__ import annotations

from torch import Tensor

from common.sketches.basis import basis_of_samples
from common.sketches.geometry import Geometry, ScoredVectors


def geometry_from(gradients, num_train: int, query_rows: Tensor, subsets: Tensor | None = None) -> Geometry:
    """Return the geometry of some rows by inner products; `gradients` has `unit_gram()` and `norms`."""
    basis = basis_of_samples(gradients.unit_gram(), gradients.norms, num_train)
    return basis.geometry(ScoredVectors(query_rows, subsets))
