"""From gradients to sketched problems: the one place where the kinds of projection differ.

A rotation invariant projection (normal) is applied to coordinates in an orthonormal basis, a factored one to the inputs
and errors of layers, every other one to the d-dimensional gradients. All end in the same SketchedProblem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.gradients.kept_rows import Gradients
from common.gradients.layer_factors import ParameterFactors
from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.factored import FactoredSketch
from common.sketches.geometry import Geometry
from common.sketches.influence import SketchedProblem, problem_from_projection
from common.sketches.moment_sketch import MomentSketcher
from common.sketches.projectors import Projector


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


@dataclass(frozen=True)
class ExplicitSketcher:
    """Sketches of the d-dimensional gradients, one pass over them a trial."""

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

    def problems(self, trial: int, ms: Sequence[int]) -> Iterator[tuple[int, SketchedProblem]]:
        """Yield (m, problem) of one trial for every m of `ms`."""
        projected = self.projector.project(self.gradients, self.max_m, trial)
        for m in ms:
            reduced = self.projector.reduce(projected, m)
            yield m, problem_from_projection(reduced, self.gradients.norms, self.num_train, self.vectors)


@dataclass(frozen=True)
class FactoredSketcher:
    """Sketches of gradients that come as factors, one pass of the model over the samples a trial."""

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

    def problems(self, trial: int, ms: Sequence[int]) -> Iterator[tuple[int, SketchedProblem]]:
        """Yield (m, problem) of one trial for every m of `ms`."""
        sketch = self.make_sketch(trial)
        scales = torch.where(self.norms > 0, 1 / self.norms, 0)
        projected = torch.zeros(len(scales), sketch.width, device=scales.device)
        for rows, shares in self.batches():
            projected[rows] = sketch.rows(shares, scales[rows])
        for m in ms:
            yield m, problem_from_projection(sketch.reduce(projected, m).T, self.norms, self.num_train, self.vectors)


Sketcher = CoordinateSketcher | ExplicitSketcher | FactoredSketcher | MomentSketcher
"""Whatever yields the problems of a trial."""
