"""Sketched problems from second moments alone: S = PFPᵀ is summed while gradients pass by, and no row is kept.

Memory of a sketch is m x m numbers, whatever n and d, and one sketch serves every smaller m: what makes the sketch of
size m out of a larger one acts on rows and columns of S alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.gradients.gram import add_gram, mirror_lower_triangle
from common.gradients.streamed_rows import StreamedGradients
from common.sketches.geometry import ScoredVectors
from common.sketches.influence import SketchedProblem
from common.sketches.passes import trials_of_a_pass
from common.sketches.projectors import Projector
from common.sketches.row_projection import RowProjection, row_projection_by

# a trial is numbered below a million, so that no trial sketch shares random numbers with the reference
REFERENCE_TRIAL = 1_000_003
ROWS_A_PRODUCT = 1024


@dataclass(frozen=True)
class Sketch:
    """One P."""

    projector: Projector
    """Law and seed."""
    size: int
    """m."""
    trial: int
    """Different trials are independent."""

    def of_rows(self, gradients: StreamedGradients) -> RowProjection:
        """Return P as it is applied to rows."""
        return row_projection_by(self.projector.matrix(self.size, self.trial), gradients.num_columns, gradients.device)

    def reduce(self, columns: Tensor, m: int) -> Tensor:
        """Return (m, q) columns PᵐX of a smaller sketch from the (size, q) columns PX of this one."""
        return self.projector.reduce(columns * self.projector.scale(self.size), m)


@dataclass(frozen=True)
class Moments:
    """What one pass leaves of one sketch; float64."""

    second: Tensor
    """(m, m) S = PFPᵀ."""
    sums: Tensor
    """(s, m) projected sums of the actual training gradients of each subset."""


def collect_moments(
    gradients: StreamedGradients, sketches: Sequence[Sketch], num_train: int, subsets: Tensor | None
) -> list[Moments]:
    """Return the moments of several sketches from one pass over all gradients, whose first `num_train` make F.

    Args:
        gradients: training rows first; their `norms` are set by this pass.
        sketches: all drawn for the same gradients.
        num_train: n.
        subsets: (s, h) int64 training samples of each subset, or None.
    """
    projections = [sketch.of_rows(gradients) for sketch in sketches]
    accumulators = [_Accumulator(sketch.size, num_train, subsets, gradients.device) for sketch in sketches]
    for samples, rows in gradients.unit_groups(max(ROWS_A_PRODUCT, *(p.rows_at_once for p in projections))):
        start, training = int(samples[0]), max(0, num_train - int(samples[0]))
        norms = gradients.norms[start : start + min(training, len(rows))]
        for project, accumulator in zip(projections, accumulators, strict=True):
            accumulator.add(start, project(rows[: len(norms)]).double() * norms[:, None])
    return [accumulator.moments() for accumulator in accumulators]


def project_samples(gradients: StreamedGradients, sketches: Sequence[Sketch], samples: Tensor) -> list[Tensor]:
    """Return for every sketch the (k, m) float64 rows Pg of (k,) samples, g scaled to unit length."""
    projections = [sketch.of_rows(gradients) for sketch in sketches]
    parts: list[list[Tensor]] = [[] for _ in sketches]
    for _, rows in gradients.unit_groups(max(p.rows_at_once for p in projections), samples):
        for project, kept in zip(projections, parts, strict=True):
            kept.append(project(rows).double())
    return [torch.cat(kept) for kept in parts]


class MomentSketcher:
    """Sketches of gradients that pass by: one pass serves every m of as many trials as moments fit into 2 GiB."""

    def __init__(
        self,
        gradients: StreamedGradients,
        projector: Projector,
        num_train: int,
        scored: ScoredVectors,
        max_m: int,
        num_trials: int,
    ):
        self._gradients, self._projector, self._num_train, self._scored = gradients, projector, num_train, scored
        self._max_m, self._num_trials = max_m, num_trials
        self._known: dict[int, tuple[Moments, Tensor]] = {}

    def problems(self, trial: int, ms: Sequence[int]) -> Iterator[tuple[int, SketchedProblem]]:
        """Yield (m, problem) of one trial for every m of `ms`."""
        if trial not in self._known:
            self._collect(trial)
        moments, queries = self._known.pop(trial)
        sketch = self._sketch(trial)
        vectors = torch.cat([moments.sums, queries])
        for m in ms:
            fisher = sketch.reduce(sketch.reduce(moments.second, m).T, m)
            yield m, SketchedProblem(fisher, sketch.reduce(vectors.T, m).T)

    def _collect(self, first: int) -> None:
        trials = trials_of_a_pass(first, self._num_trials, 8 * self._max_m**2)
        sketches = [self._sketch(trial) for trial in trials]
        moments = collect_moments(self._gradients, sketches, self._num_train, self._scored.subsets)
        queries = project_samples(self._gradients, sketches, self._scored.query_rows)
        self._known = dict(zip(trials, zip(moments, queries, strict=True), strict=True))

    def _sketch(self, trial: int) -> Sketch:
        return Sketch(self._projector, self._max_m, trial)


class _Accumulator:
    """S and sums of subsets, a group of rows at a time."""

    def __init__(self, size: int, num_train: int, subsets: Tensor | None, device: torch.device):
        self._second = torch.zeros(size, size, dtype=torch.float64, device=device)
        count = 0 if subsets is None else len(subsets)
        self._members = torch.zeros(count, num_train, dtype=torch.bool, device=device)
        if subsets is not None:
            self._members.scatter_(1, subsets.to(device), True)
        self._sums = torch.zeros(count, size, dtype=torch.float64, device=device)
        self._num_train = num_train

    def add(self, start: int, rows: Tensor) -> None:
        """Take in (b, m) rows of actual training gradients from `start` on."""
        add_gram(self._second, rows.T)
        self._sums += self._members[:, start : start + len(rows)].double() @ rows

    def moments(self) -> Moments:
        mirror_lower_triangle(self._second)
        return Moments(self._second.div_(self._num_train), self._sums)
