"""Check projected gradients against plain autograd by their lengths: one gradient in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.gradients.lengths import gradient_length
from common.gradients.row_checks import flat_gradient, order, rounding
from common.gradients.verification import Subject, allowed_difference

FEWEST = 4
"""Samples that are checked whatever it takes."""


@dataclass(frozen=True)
class WrongLength:
    """A gradient whose length is not that of plain autograd."""

    row: int
    """Of the sample, among all of the subject."""
    found: float
    """Its length as it was found."""
    expected: float
    """Its length by plain autograd."""


def wrong_length(subject: Subject, rows: Sequence[int], norms: Tensor, seconds: float) -> WrongLength | None:
    """Return the first of some samples whose gradient has another length by one backward pass of plain autograd.

    Compared are the longest, the shortest that is not zero, and seeded ones, as many as `seconds` allow.

    Args:
        subject: model and samples.
        rows: samples of the subject.
        norms: (len(rows),) float64 lengths found.
        seconds: what the comparison may take, unless fewer than four samples are compared by then.
    """
    start = time.perf_counter()
    chosen: list[int] = []
    lengths: list[Tensor] = []
    for place in order(norms):
        if len(chosen) >= FEWEST and time.perf_counter() - start > seconds:
            break
        chosen.append(place)
        lengths.append(_length(subject, rows[place]))
    expected = torch.stack(lengths).cpu()
    found = norms[torch.tensor(chosen)].cpu()
    allowed = allowed_difference(expected, subject.precision)
    for i in (~((found - expected).abs() <= allowed)).nonzero().flatten().tolist():
        row = rows[chosen[i]]
        slack = 10 * rounding(subject, row, flat_gradient(subject, row))
        if not abs(found[i] - expected[i]) <= allowed[i] + slack:
            return WrongLength(row, found[i].item(), expected[i].item())
    return None


def _length(subject: Subject, row: int) -> Tensor:
    (gradient,) = subject.one_by_one(torch.tensor([row]))
    return gradient_length(gradient)
