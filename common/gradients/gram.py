"""Gram matrices R Rᵀ in float64, of which only one triangle is multiplied out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL_ROWS = 256


def panels(n: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows of an (n, n) lower triangle, and the columns up to their last."""
    for start in range(0, n, PANEL_ROWS):
        stop = min(start + PANEL_ROWS, n)
        yield slice(start, stop), slice(0, stop)


def add_gram(gram: Tensor, rows: Tensor, weight: float = 1.0) -> None:
    """Add w R Rᵀ to the lower triangle of `gram`, at half the cost of the whole product.

    What stands above the diagonal afterwards is not defined.

    Args:
        gram: (N, N) float64.
        rows: (N, b) R, any floating dtype; converted to float64 first.
        weight: w.
    """
    exact = rows.double()
    for part, before in panels(len(gram)):
        gram[part, before].addmm_(exact[part], exact[before].T, alpha=weight)


def add_gram_of_columns(gram: Tensor, matrix: Tensor, weight: float = 1.0, chunk: int = 2048) -> None:
    """Add w MᵀM of (m, N) M to the lower triangle of (N, N) float64 `gram`, `chunk` rows at a time."""
    # memory for all chunks: new pages cost more than the conversion
    exact = gram.new_empty(len(gram), min(chunk, len(matrix)))
    kept = matrix.new_empty(min(chunk, len(matrix)), len(gram))
    for part in matrix.split(chunk):
        # an SJLT with m near d leaves many of its rows empty: a fifth for d = 1.7 m
        filled = part.any(dim=1).nonzero().flatten()
        used = torch.index_select(part, 0, filled, out=kept[: len(filled)]) if len(filled) < len(part) else part
        add_gram(gram, exact[:, : len(used)].copy_(used.T), weight)


def gram_of_columns(matrix: Tensor, chunk: int = 2048) -> Tensor:
    """Return the lower triangle of the (N, N) float64 Gram matrix of the columns of (m, N), `chunk` rows at a time."""
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    add_gram_of_columns(gram, matrix, chunk=chunk)
    return gram


def gram_of_upper_trapezoid(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the lower triangle of R Rᵀ for an upper trapezoidal (r, N) float64 R, at a sixth of the dense cost.

    `out` is an (r, r) float64 matrix to write it to; what stands above its diagonal afterwards is not defined.
    """
    gram = torch.zeros(len(rows), len(rows), dtype=rows.dtype, device=rows.device) if out is None else out
    for part, before in panels(len(rows)):
        gram[part, before].addmm_(rows[part, part.start :], rows[before, part.start :].T, beta=0)
    return gram


def mirror_lower_triangle(gram: Tensor) -> None:
    """Copy the lower triangle onto the upper one, in place."""
    gram.tril_()
    gram.add_(gram.tril(-1).T)
