"""F, and what is scored, as a run sees them: exactly, through inner products, or through one large sketch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from common.experiments.options.records import CrossChoice, SharedOptions
from common.experiments.preparing.column_sample import sample_columns
from common.experiments.preparing.factored import sides_reader, stable_rank
from common.experiments.preparing.queries import Queries, choose_queries, choose_training_rows
from common.experiments.run import Run
from common.foundations.errors import UserError
from common.gradients.kept_rows import Gradients
from common.gradients.planning import GradientPlan, stream_gradients
from common.gradients.streamed_rows import StreamedGradients
from common.sketches.basis import Basis, build_basis
from common.sketches.cache import Cache
from common.sketches.geometry import Geometry, ScoredVectors
from common.sketches.moment_sketch import REFERENCE_TRIAL, Sketch, collect_moments, project_samples
from common.sketches.projectors import make_projector
from common.theory.column_sample import ColumnSample
from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis, few_in_a_bucket
from common.theory.spectrum import ExactSpectrum, Spectrum


class LazyGradients:
    """All rows, computed or opened when they are first asked for: with a geometry of an earlier run, many never are."""

    def __init__(self, run: Run, cache: Cache):
        self._run, self._cache = run, cache
        self._gradients: Gradients | None = None

    def get(self, norms: Tensor | None = None) -> Gradients:
        """Return the gradients; `norms` are their (N,) lengths, where they are known."""
        if self._gradients is None:
            with self._run.phase("gradients"):
                self._gradients, from_cache = self._cache.gradients(norms)
            check = self._gradients.check
            self._run.record(gradients_from_cache=from_cache)
            if check is not None:
                self._run.record(gradient_check=asdict(check))
        return self._gradients


@dataclass(frozen=True)
class FisherView:
    """F, and what is scored."""

    geometry: Geometry
    """Eigenvalues of F and coordinates in its eigenbasis; or those of S = PFPᵀ and of projected vectors."""
    spectrum: Spectrum
    """F as theory sees it."""
    queries: Queries
    """Which samples are scored."""
    sjlt_columns: ColumnSample | None = None
    """What the closed form of an SJLT with one entry a column needs besides the spectrum."""
    range_weights: Tensor | None = None
    """(k, N) weights whose product with the unit rows is the part of each query in range(F); where sketches need it."""
    streamed: StreamedGradients | None = None
    """The gradients, where F is seen through a sketch; None: those of the run's cache."""


def exact_view(
    options: SharedOptions,
    run: Run,
    cache: Cache,
    gradients: LazyGradients,
    drawn: Tensor,
    subsets: Tensor | None,
    cross: CrossChoice | None,
    max_m: int,
) -> FisherView:
    """Return F from the inner products of all gradients, or from the d x d matrix itself where d < N.

    Args:
        options: what is asked for.
        run: where to record.
        cache: of gradients and geometry.
        gradients: training rows first.
        drawn: samples in the order of drawing, see `choose_queries`.
        subsets: (S, h) training samples of subsets whose sums are scored too, or None.
        cross: which training gradients are scored against the queries, if any.
        max_m: largest m of the sweep.
    """
    num_train = len(cache.plan.parts[0][1])
    basis = _find_basis(run, cache, gradients)
    queries = choose_queries(basis.norms, num_train, drawn, options.queries)
    train = None
    if cross is not None:
        train = choose_training_rows(basis.norms, num_train, cross.num_train_grads, options.queries.seed)
    with run.phase("geometry"):
        scored = ScoredVectors(queries.rows, subsets, train, cross is not None and cross.kernel_parts)
        geometry = basis.geometry(scored, lambda: gradients.get(basis.norms))
    range_weights = None
    if scored.kernel_parts and not options.sketches.of_coordinates:
        rows = gradients.get(basis.norms)
        with run.phase("geometry"):
            range_weights = basis.range_weights(geometry.queries, lambda: rows)
    columns = None
    if options.sketches.one_entry_a_column:
        rows = gradients.get(basis.norms)
        with run.phase("column sample"):
            seed = options.sketches.seed
            of_factors = options.sketches.of_factors
            sides = sides_reader(rows, basis, geometry, cache.plan, max_m, seed) if of_factors else None
            columns = sample_columns(rows, basis, geometry.queries, seed, sides)
    with run.phase("stable rank"):
        run.record(mean_stable_rank=stable_rank(cache.plan) if options.sketches.of_factors else None)
    return FisherView(geometry, ExactSpectrum(geometry.eigenvalues), queries, columns, range_weights)


def sketched_view(
    options: SharedOptions, run: Run, plan: GradientPlan, drawn: Tensor, subsets: Tensor | None
) -> FisherView:
    """Return F as one sketch of M = `reference_m` rows shows it, of the run's own law and independent of its trials.

    Memory: a group of gradients, and a few M x M matrices. For the arguments see `exact_view`.
    """
    size, num_train, sketches = options.sketches.reference_m, len(plan.parts[0][1]), options.sketches
    if size is None or size >= plan.num_columns:
        raise UserError(f"--reference_m {size} must be below the {plan.num_columns} parameters of the model")
    projector = make_projector(sketches.proj_type, sketches.seed, sketches.sparsity)
    reference = [Sketch(projector, size, REFERENCE_TRIAL)]
    with run.phase("reference"):
        streamed, (moments,) = stream_gradients(
            plan, lambda gradients: collect_moments(gradients, reference, num_train, subsets)
        )
        run.record(geometry_from_cache=False, gradients_from_cache=False, mean_stable_rank=None)
        if streamed.check is not None:
            run.record(gradient_check=asdict(streamed.check))
        queries = choose_queries(streamed.norms, num_train, drawn, options.queries)
        (projected,) = project_samples(streamed, reference, queries.rows)
    with run.phase("geometry"):
        eigenvalues, basis = eigenbasis(moments.second)
        # rounding leaves numbers of both signs and of this size in the place of zeros
        eigenvalues[eigenvalues <= size * torch.finfo(torch.float64).eps * eigenvalues[0]] = 0
        vectors = torch.cat([moments.sums, projected]) @ basis
    if few := few_in_a_bucket(sketches.proj_type, plan.num_columns, len(eigenvalues)):
        print(f"warning: reference: {few}")
    rank = int((eigenvalues > 0).sum())
    scored = ScoredVectors(queries.rows, subsets)
    geometry = Geometry(eigenvalues, rank, streamed.norms, num_train, scored, vectors)
    return FisherView(geometry, SketchedSpectrum(eigenvalues), queries, streamed=streamed)


def _find_basis(run: Run, cache: Cache, gradients: LazyGradients) -> Basis:
    """Return the basis of an earlier run, or build and keep it."""
    with cache.geometry_lock() as usable:
        with run.phase("geometry"):
            basis = cache.read_basis() if usable else None
        run.record(geometry_from_cache=basis is not None, gradients_from_cache=None)
        if basis is None:
            rows = gradients.get()
            with run.phase("geometry"):
                basis = build_basis(rows, len(cache.plan.parts[0][1]))
                if usable:
                    cache.keep_basis(basis)
    return basis
