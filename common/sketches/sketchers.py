"""From gradients to sketched problems: the one place where the kinds of projection differ.

A rotation invariant projection (normal) is applied to coordinates in an orthonormal basis, a factored one to the inputs
and errors of layers, every other one to the d-dimensional gradients. All end in the same SketchedProblem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.foundations.errors import UserError
from common.gradients.kept_rows import Gradients
from common.gradients.layer_factors import ParameterFactors
from common.gradients.lengths import inverse_lengths
from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.factored import FactoredSketch, rows_of_all
from common.sketches.geometry import Geometry
from common.sketches.influence import (
    NEGLIGIBLE,
    SketchedProblem,
    longest_first,
    problem_from_gram,
    problem_from_projection,
)
from common.sketches.moment_sketch import MomentSketcher
from common.sketches.passes import trials_of_a_pass
from common.sketches.projectors import Projector

LENGTH_TOLERANCE = 1e-3
"""Relative difference of lengths by factors from those by gradients; rounding makes 1e-6."""


@dataclass(frozen=True)
class CoordinateSketcher:
    """Gaussian sketches of the coordinates, exact in law."""

    geometry: Geometry
    """Eigenvalues, and coordinates of the vectors to score."""
    smallest_ridge: float
    """Smallest λ that problems will be solved with."""
    seed: int
    """Seed of all sketches."""

    def problems(self, trial: int, ms: Sequence[int]) -> Iterator[tuple[int, SketchedProblem]]:
        """Yield (m, problem) of one trial for every m of `ms`."""
        known = self.geometry
        sketch = GaussianCoordinateSketch(known.eigenvalues, known.vectors, self.smallest_ridge, self.seed, trial)
        for m in ms:
            yield m, sketch.problem(m)


class SomeRows:
    """Some rows of gradients, for a projector."""

    def __init__(self, gradients: Gradients, rows: Tensor):
        self._gradients, self._rows = gradients, rows
        self.num_columns, self.num_rows = gradients.num_columns, len(rows)

    def unit_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, (N, b) float32 block) of the rows scaled to unit length."""
        for start, block in self._gradients.unit_blocks():
            yield start, block[self._rows]

    def unit_batches(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (places among these rows, (b, d) float32 rows scaled to unit length)."""
        return self._gradients.unit_batches(self._rows.cpu())


@dataclass(frozen=True)
class ExplicitSketcher:
    """Sketches of the d-dimensional gradients: one pass over them serves as many trials as fit into 2 GiB."""

    gradients: Gradients
    """Training rows first."""
    projector: Projector
    """Law of P."""
    num_train: int
    """n."""
    vectors: Tensor
    """(v, N) float64 weights, sparse or dense: the vectors to score are these times the unit rows."""
    max_m: int
    """Largest m of the run, whether or not a call asks for it: P depends on it."""
    smallest_ridge: float = 0.0
    """Smallest λ that problems will be solved with: gradients that weigh nothing against it are left out."""
    num_trials: int = 1
    """Trials of the run, counted from 0."""
    ahead: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    """Trial -> projections that an earlier pass has left, until they are asked for."""

    def problems(self, trial: int, ms: Sequence[int]) -> Iterator[tuple[int, SketchedProblem]]:
        """Yield (m, problem) of one trial for every m of `ms`."""
        rows, num_train = self._rows_that_matter()
        if trial not in self.ahead:
            trials = trials_of_a_pass(trial, self.num_trials, 4 * self.max_m * len(rows))
            found = self.projector.project_all(SomeRows(self.gradients, rows), self.max_m, trials)
            self.ahead.update(zip(trials, found, strict=True))
            del found
        projected = self.ahead.pop(trial)
        # divided by n, whatever is left out
        norms = self.gradients.norms[rows] * (num_train / self.num_train) ** 0.5
        known = norms, num_train, self.vectors.index_select(1, rows)
        primal = [m for m in ms if m <= projected.shape[1]]
        if primal:
            small = self.projector.small(projected)
            for m in primal:
                yield m, problem_from_projection(self.projector.reduce(small, m), *known)
            del small
        if len(primal) < len(ms):
            for m, gram in self.projector.grams(projected, ms[len(primal) :]):
                yield m, problem_from_gram(gram, *known)

    def _rows_that_matter(self) -> tuple[Tensor, int]:
        """Return the rows to project, training rows first and by length, and the number of those.

        Left out are the shortest training gradients, whose squared lengths add up to n λ/10⁸ at most, where they are
        not themselves scored: F, and every score, then changes by 1e-8 of itself at most, and that of a sketch by as
        much.
        """
        norms, n = self.gradients.norms, self.num_train
        lengths, order = norms[:n].sort()
        light = lengths.square().cumsum(0) <= n * NEGLIGIBLE * self.smallest_ridge
        matters = torch.ones(len(norms), dtype=torch.bool, device=norms.device)
        matters[order[light]] = False
        if self.vectors.is_sparse:
            matters[self.vectors.coalesce().indices()[1]] = True
        else:
            matters |= self.vectors.any(0)
        rows, num_train = matters.nonzero().flatten(), int(matters[:n].sum())
        return rows[longest_first(norms[rows], num_train)], num_train


@dataclass(frozen=True)
class FactoredSketcher:
    """Sketches of gradients that come as factors: one pass of the model serves as many trials as fit into 2 GiB."""

    batches: Callable[[], Iterable[tuple[slice, Iterable[ParameterFactors]]]]
    """Starts a pass: (rows, factors) over all samples, training samples first."""
    make_sketch: Callable[[int], FactoredSketch]
    """Trial -> its sketch."""
    norms: Tensor
    """(N,) float64 lengths of the gradients."""
    num_train: int
    """n."""
    vectors: Tensor
    """(v, N) float64 weights, sparse or dense: the vectors to score are these times the unit rows."""
    num_trials: int = 1
    """Trials of the run, counted from 0."""
    ahead: dict[int, tuple[FactoredSketch, Tensor]] = field(default_factory=dict, init=False, repr=False)
    """Trial -> its sketch and the rows that an earlier pass has left, until they are asked for."""

    def problems(self, trial: int, ms: Sequence[int]) -> Iterator[tuple[int, SketchedProblem]]:
        """Yield (m, problem) of one trial for every m of `ms`."""
        if trial not in self.ahead:
            self._project(trial)
        sketch, projected = self.ahead.pop(trial)
        for m in ms:
            yield m, problem_from_projection(sketch.reduce(projected, m).T, self.norms, self.num_train, self.vectors)

    def _project(self, first: int) -> None:
        scales, sketch = inverse_lengths(self.norms), self.make_sketch(first)
        trials = trials_of_a_pass(first, self.num_trials, 4 * sketch.width * len(scales))
        sketches = [sketch, *(self.make_sketch(trial) for trial in trials[1:])]
        projected = [torch.zeros(len(scales), sketch.width, device=scales.device) for _ in trials]
        for rows, shares in self.batches():
            squares: list[Tensor] = []
            found = rows_of_all(sketches, shares if rows.start else _measured(shares, squares), scales[rows])
            for all_rows, own in zip(projected, found, strict=True):
                all_rows[rows] = own
            if squares:
                _require_lengths(torch.stack(squares).sum(0).sqrt(), self.norms[rows])
        self.ahead.update(zip(trials, zip(sketches, projected, strict=True), strict=True))


Sketcher = CoordinateSketcher | ExplicitSketcher | FactoredSketcher | MomentSketcher
"""Whatever yields the problems of a trial."""


def _measured(shares: Iterable[ParameterFactors], squares: list[Tensor]) -> Iterator[ParameterFactors]:
    """Yield the shares while their squared lengths are added to a list."""
    for share in shares:
        squares.append(share.squared_norms())
        yield share


def _require_lengths(found: Tensor, norms: Tensor) -> None:
    """Raise UserError where factors are not those of the gradients whose lengths are known."""
    if ((found - norms).abs() <= LENGTH_TOLERANCE * norms).all():
        return
    row = int(((found - norms).abs() / norms).nan_to_num().argmax())
    raise UserError(
        f"the factors of sample {row} give a gradient of length {found[row].item():.6g}, and it has "
        f"{norms[row].item():.6g}: factors do not describe this model; use --proj_type sjlt"
    )
