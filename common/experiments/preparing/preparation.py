"""What both experiments do first: data, model, gradients, geometry; and the sketcher they then use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from common.experiments.options.records import CrossChoice, SharedOptions, SketchOptions, WorkloadChoice
from common.experiments.preparing.device import choose_device
from common.experiments.preparing.dimensions import Dimensions, sweep_dimensions
from common.experiments.preparing.factored import factored_sketcher
from common.experiments.preparing.fisher_views import LazyGradients, exact_view, sketched_view
from common.experiments.preparing.queries import draw_queries
from common.experiments.preparing.ridges import mean_eigenvalue, resolved_ridges
from common.experiments.run import Run
from common.foundations.errors import UserError
from common.foundations.storage import file_checksum
from common.foundations.tensor_files import fingerprint
from common.gradients.first_gradients import check_gradients
from common.gradients.kept_rows import Gradients
from common.gradients.planning import DTYPES, GradientPlan, plan_gradients
from common.gradients.streamed_rows import StreamedGradients
from common.sketches.cache import Cache
from common.sketches.geometry import Geometry
from common.sketches.moment_sketch import MomentSketcher
from common.sketches.projectors import make_projector
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher, Sketcher
from common.theory.column_sample import ColumnSample
from common.theory.spectrum import Spectrum, effective_dimension
from common.workloads.benchmark import SEED, TrainedModel, check_ground_truth, load_trained_model, subset_indices
from common.workloads.pairs import load_workload
from common.workloads.published import load_published_benchmark
from common.workloads.records import Dataset, Workload
from common.workloads.samples import check_every_sample
from common.workloads.training import fresh_model
from common.workloads.user_file import load_user_workload, naming, without_ground_truth

Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Prepared:
    """Everything an experiment needs before its first sketch."""

    workload: Workload
    """Data, model factory, loss, recipe."""
    plan: GradientPlan
    """Which gradients of which checkpoint, and how they are computed."""
    device: torch.device
    """Where gradients, geometry and sketches are computed."""
    num_parameters: int
    """d."""
    gradients: LazyGradients
    """All rows: training samples, then test queries if there are any."""
    geometry: Geometry
    """Eigenvalues of F, coordinates of what is scored; with a reference sketch those of S, see `FisherView`."""
    spectrum: Spectrum
    """F as theory sees it."""
    query_samples: Tensor
    """(k,) int64 indices of the queries in the training or test set."""
    dimensions: Dimensions
    """Projection dimensions of the sweep, and those left out."""
    ridges: list[float]
    """λ, ascending."""
    ridges_left_out: list[float]
    """λ asked for that are below rounding, or that the reference sketch cannot see, see `resolved_ridges`."""
    effective_dimensions: list[float]
    """d_λ for every λ."""
    sjlt_columns: ColumnSample | None
    """What the closed form of a sketch with one entry a column needs besides the spectrum."""
    range_weights: Tensor | None
    """(k, N) weights whose product with the unit rows is the part of each query in range(F); where sketches need it."""
    streamed: StreamedGradients | None
    """The gradients, where exact scores are those of a reference sketch."""

    @property
    def ms(self) -> list[int]:
        """Projection dimensions of the sweep, ascending."""
        return self.dimensions.used

    def rows(self) -> Gradients:
        """Return the gradients, whose lengths the geometry knows: recomputed ones then need no Gram matrix again."""
        return self.gradients.get(self.geometry.norms)


def prepare(
    options: SharedOptions, run: Run, num_subsets: int | None = None, cross: CrossChoice | None = None
) -> Prepared:
    """Return a trained model's gradients and their geometry; every step is timed and recorded in config.json.

    Args:
        options: what is asked for.
        run: where to record.
        num_subsets: subset models that a ground truth will be needed of, if any: the summed gradients of their
            training samples are scored too.
        cross: which single training gradients are scored too, if any.

    Raises:
        UserError: see the functions called.
    """
    choice, wanted = options.workload, options.gradients
    device = choose_device(wanted.device)
    workload, trained = load_model(choice, device, run.phase, num_subsets)
    num_parameters = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    dimensions = sweep_dimensions(options.grid, options.sketches, trained.model)
    print_model(workload, trained, num_parameters)

    parts, drawn = draw_queries(workload, options.queries)
    with run.phase("plan"):
        plan = plan_gradients(
            workload,
            trained.model,
            parts,
            wanted.batch_size,
            wanted.offload if options.sketches.reference_m is None else "recompute",
            DTYPES[wanted.dtype],
            device,
            last_samples=drawn if options.queries.kind == "test" else None,
            prefer_stored=options.sketches.by_columns,
        )
        cache = Cache(wanted.cache_dir, plan, trained.fingerprint, choice.file)
    gradients = LazyGradients(run, cache)
    subsets = None if num_subsets is None else subset_indices(workload, num_subsets)
    if options.sketches.reference_m is None:
        view = exact_view(options, run, cache, gradients, drawn, subsets, cross, dimensions.used[-1])
    else:
        view = sketched_view(options, run, plan, drawn, subsets)
    geometry, spectrum, queries = view.geometry, view.spectrum, view.queries
    mean = mean_eigenvalue(spectrum)
    ridges, ridges_left_out = resolved_ridges(options.grid, spectrum)
    d_lambda = effective_dimension(spectrum, torch.tensor(ridges, dtype=torch.float64)).tolist()
    run.record(
        data_fingerprint=fingerprint(*_data(workload)),
        workload_checksum=None if choice.file is None else file_checksum(choice.file),
        checkpoint_fingerprint=trained.fingerprint,
        train_accuracy=trained.train_accuracy,
        test_accuracy=trained.test_accuracy,
        n=len(workload.train),
        k=len(queries.rows),
        d=num_parameters,
        rank=geometry.rank,
        ms=dimensions.used,
        num_zero_train=queries.num_zero_train,
        num_zero_queries=queries.num_zero_queries,
        mean_eigenvalue=mean,
        reference_m=options.sketches.reference_m,
        ridges_left_out=ridges_left_out,
        device=str(device),
        offload=plan.offload,
        gradient_routes=asdict(plan.checked),
    )
    run.announce_replacement()
    seen = "rank of F" if view.streamed is None else "F as a reference sketch sees it, rank of that"
    print(f"{seen}: {geometry.rank}; d_λ from {d_lambda[0]:.4g} (λ = {ridges[0]:g}) to {d_lambda[-1]:.4g}")
    return Prepared(
        workload=workload,
        plan=plan,
        device=device,
        num_parameters=num_parameters,
        gradients=gradients,
        geometry=geometry,
        spectrum=spectrum,
        query_samples=queries.samples,
        dimensions=dimensions,
        ridges=ridges,
        ridges_left_out=ridges_left_out,
        effective_dimensions=d_lambda,
        sjlt_columns=view.sjlt_columns,
        range_weights=view.range_weights,
        streamed=view.streamed,
    )


def make_sketcher(options: SketchOptions, prepared: Prepared, smallest_ridge: float) -> Sketcher:
    """Return the sketcher asked for, of the vectors that the geometry holds."""
    geometry, max_m = prepared.geometry, prepared.ms[-1]
    if options.of_coordinates:
        return CoordinateSketcher(geometry, smallest_ridge, options.seed)
    if prepared.streamed is not None:
        projector, trials = make_projector(options.proj_type, options.seed, options.sparsity), options.num_trials
        return MomentSketcher(prepared.streamed, projector, geometry.num_train, geometry.scored, max_m, trials)
    vectors = geometry.scored.weights(geometry.norms)
    if prepared.range_weights is not None:
        vectors = vectors.to_dense()
        vectors = torch.cat([vectors, vectors[-len(prepared.range_weights) :] - prepared.range_weights])
    if options.of_factors:
        return factored_sketcher(options, prepared.plan, geometry, vectors, max_m)
    projector, known = make_projector(options.proj_type, options.seed, options.sparsity), geometry.num_train
    return ExplicitSketcher(prepared.rows(), projector, known, vectors, max_m, smallest_ridge, options.num_trials)


def load_model(
    choice: WorkloadChoice, device: torch.device, phase: Phase, num_subsets: int | None = None
) -> tuple[Workload, TrainedModel]:
    """Return the workload and its checkpoint; --benchmark dattri brings its ground truth along.

    Args:
        choice: which one.
        device: where it is trained and run.
        phase: returns the context of a step that takes time, given its name.
        num_subsets: subset models that a ground truth will be needed of, if any.
    """
    trained = None
    if choice.benchmark == "dattri":
        with phase("published benchmark"):
            pair = (choice.dataset, choice.model)
            trained, truth, *data = load_published_benchmark(*pair, choice.benchmark_dir, device)
            workload = replace(load_workload(*pair, data=Dataset(*data)), ground_truth=truth)
    else:
        with phase("data"):
            workload = _load_workload(choice, device)
    if num_subsets is not None:
        # retraining comes after the gradients, which may take hours: say before them that it cannot be done
        check_ground_truth(workload, num_subsets)
    if trained is None:
        with phase("checkpoint"):
            trained = load_trained_model(workload, choice.benchmark_dir, device)
    return workload, trained


def _load_workload(choice: WorkloadChoice, device: torch.device) -> Workload:
    if choice.file is None:
        workload = load_workload(choice.dataset, choice.model, choice.num_train, choice.data_dir)
    else:
        workload = load_user_workload(choice.file, choice.num_train)
        with naming(choice.file):
            check_every_sample(workload, fresh_model(workload, SEED).eval(), device)
            check_gradients(workload, choice.file.resolve())
    if choice.epochs is None:
        return workload
    if workload.recipe is None:
        raise UserError(f"--epochs {choice.epochs}: {workload.name} has no recipe, its model comes trained")
    recipe = replace(workload.recipe, epochs=choice.epochs)
    return without_ground_truth(replace(workload, recipe=recipe), f"--epochs {choice.epochs}")


def _data(workload: Workload) -> list[Tensor]:
    """Return all tensors of a workload that the numbers of an experiment depend on."""
    truth = workload.ground_truth
    tensors = [*workload.train.tensors(), *workload.test.tensors()]
    return tensors if truth is None else [*tensors, truth.subset_indices, truth.losses]


def print_model(workload: Workload, trained: TrainedModel, num_parameters: int) -> None:
    """Print in one line what is attributed."""
    accuracy = ""
    if trained.train_accuracy is not None:
        accuracy = f", accuracy {trained.train_accuracy:.1%} train, {trained.test_accuracy:.1%} test"
    print(f"{workload.name}: {len(workload.train)} training samples, {num_parameters} parameters{accuracy}")
