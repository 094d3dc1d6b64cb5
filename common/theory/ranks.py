"""Ranks whose inner products are Spearman correlations."""

from __future__ import annotations

from math import nan

import torch
from torch import Tensor


def unit_ranks(values: Tensor) -> Tensor:
    """Return the average ranks of every column, centred and scaled to unit length.

    The inner product of two such columns is their Spearman correlation, so a side that is correlated many
    times is ranked once.

    Args:
        values: (S, k), any floating dtype and device.

    Returns:
        (S, k) float64 on the CPU; NaN in every column that is constant or holds a non-finite value.

    Raises:
        ValueError: `values` is not two-dimensional.
    """
    if values.ndim != 2:
        raise ValueError(f"values to rank must have shape (S, k), not {tuple(values.shape)}")
    values = values.detach().cpu().double()
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    smaller, not_larger = (torch.searchsorted(ordered, columns, side=side) for side in ("left", "right"))
    ranks = (smaller + not_larger + 1).double().T / 2
    # Multiples of one half: these differences and their sum of squares are exact, and 0 / 0 marks constants.
    centred = ranks - (len(values) + 1) / 2
    scaled = centred / centred.square().sum(dim=0).sqrt()
    return torch.where(values.isfinite().all(dim=0), scaled, nan)
