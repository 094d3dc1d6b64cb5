"""Check finished rows of gradients against plain autograd: their lengths and their inner products."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from common.foundations.seeds import make_generator
from common.gradients.layer_capture import ONE_AT_A_TIME, LayerCapture, Routes
from common.gradients.verification import (
    SEED,
    STREAM,
    Mismatch,
    Subject,
    allowed_difference,
    in_float64,
    wrong_parameters,
)

SHARE = 0.02
"""Share of all rows that is checked, where the time suffices."""
FEWEST = 8
"""Rows that are checked whatever it takes."""
REFERENCE_BYTES = 2**29
"""What the gradients that rows are compared with may take; two rows are compared whatever they take."""
LAST_BITS = 3
"""Neighbouring models, all weights changed by a rounding, that show how well a gradient is determined."""


class Rows(Protocol):
    """What a check needs of gradients, wherever they are kept."""

    num_columns: int
    """d."""
    norms: Tensor
    """(N,) float64 lengths."""

    def inner_products(self, rows: Tensor) -> Tensor:
        """Return the (k, k) float64 inner products of (k,) int64 rows scaled to unit length."""


@dataclass(frozen=True)
class RowCheck:
    """What a check of finished rows has found."""

    num_rows: int
    """Rows compared."""
    worst: float
    """Largest difference of a length or an inner product, relative to the product of both lengths."""
    seconds: float
    """What it took."""
    mismatches: list[Mismatch] = field(default_factory=list)
    """Parameters whose gradients are wrong; none where all differences are rounding."""


def check_rows(subject: Subject, routes: Routes, gradients: Rows, stored: torch.dtype, seconds: float) -> RowCheck:
    """Return how lengths and inner products of some rows compare with those of one backward pass a sample.

    The rows are the longest, the shortest that is not zero, and seeded ones: two per cent of all, fewer where that
    takes longer than `seconds`. `stored` is the dtype of the rows, whose rounding is allowed for.
    """
    start = time.perf_counter()
    most = max(2, REFERENCE_BYTES // (8 * gradients.num_columns))
    rows: list[int] = []
    reference: list[Tensor] = []
    for row in order(gradients.norms)[:most]:
        if len(rows) >= FEWEST and time.perf_counter() - start > seconds:
            break
        rows.append(row)
        reference.append(flat_gradient(subject, row))
    exact = torch.stack(reference)
    lengths = exact.norm(dim=1)
    chosen = torch.tensor(rows)
    norms = gradients.norms[chosen.to(gradients.norms.device)].to(exact.device)
    found = gradients.inner_products(chosen).to(exact.device) * norms[:, None] * norms
    difference = (found - exact @ exact.T).abs()
    allowed = allowed_difference(lengths, subject.precision) + 4 * torch.finfo(stored).eps * lengths
    suspects = _beyond(difference, lengths, allowed).any(dim=1)
    for i in torch.nonzero(suspects).flatten().tolist():
        allowed[i] += 10 * rounding(subject, rows[i], exact[i])
    scale = (lengths[:, None] * lengths).clamp(min=torch.finfo(torch.float64).tiny)
    bad = _beyond(difference, lengths, allowed)
    mismatches = _mismatches(subject, routes, chosen, bad, difference / scale) if bad.any() else []
    worst = (difference / scale)[lengths > 0][:, lengths > 0]
    return RowCheck(len(rows), worst.max().item() if len(worst) else 0.0, time.perf_counter() - start, mismatches)


def order(norms: Tensor) -> list[int]:
    """Return the rows to check, the most important first."""
    count = len(norms)
    shortest = torch.where(norms > 0, norms, torch.inf).argmin()
    generator = make_generator("cpu", SEED, STREAM, 3)
    seeded = torch.randperm(count, generator=generator)[: max(FEWEST, int(SHARE * count))]
    return list(dict.fromkeys([int(norms.argmax()), int(shortest), *seeded.tolist()]))


def flat_gradient(subject: Subject, row: int) -> Tensor:
    """Return the (d,) float64 gradient of one sample by plain autograd."""
    (gradient,) = subject.one_by_one(torch.tensor([row]))
    return torch.cat([part.flatten() for part in gradient.values()]).double()


def _beyond(difference: Tensor, lengths: Tensor, allowed: Tensor) -> Tensor:
    """Return where (k, k) inner products differ by more than gradients that differ by `allowed` explain."""
    explained = lengths[:, None] * allowed
    return ~(difference <= explained + explained.T + allowed[:, None] * allowed)


def rounding(subject: Subject, row: int, gradient: Tensor) -> float:
    """Return by how much rounding may change a gradient: its distance to those of models a last bit away."""
    changes = [0.0]
    exact = in_float64(subject, row)
    if exact is not None:
        changes.append((flat_gradient(exact, row) - gradient).norm().item())
    for number in range(LAST_BITS):
        with _last_bits_changed(subject.model, torch.Generator().manual_seed(number)):
            changes.append((flat_gradient(subject, row) - gradient).norm().item())
    return max(changes)


@contextmanager
def _last_bits_changed(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Change every weight by a rounding, and back: a model may hold what cannot be copied, or need all its dtypes."""
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight.device) * 2 - 1
                weight.mul_(1 + signs * torch.finfo(weight.dtype).eps)
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


def _mismatches(subject: Subject, routes: Routes, rows: Tensor, bad: Tensor, relative: Tensor) -> list[Mismatch]:
    """Return the parameters that are wrong at the worst row; all that are not at the last step if none is found.

    The worst row is the one whose (k, k) inner products are wrong by most together.
    """
    # a row that is right has bad products with wrong ones alone, which have them with many
    worst = int(torch.where(bad, relative.nan_to_num(torch.inf).clamp(max=1), 0).sum(dim=1).argmax())
    row = rows[worst : worst + 1]
    names = list(subject.parameters)
    captures = LayerCapture(subject.model, subject.loss, routes)(subject.batch(row))
    wrong = wrong_parameters(captures, subject.one_by_one(row), row, names, subject)
    if wrong:
        return list(wrong.values())
    left = [name for name in names if routes.step(name) != ONE_AT_A_TIME] or names
    return [Mismatch(name, int(row), relative[worst].max().item()) for name in left]
