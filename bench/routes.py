"""What `bench.py` times: our routes beside the obvious ones, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from bench import MIN_M, factors, kronecker, language_model, stores
from bench.gradient_rows import rows_by_layers, rows_by_vmap, rows_one_by_one
from common.foundations.memory import AddedMemory
from common.foundations.seeds import make_generator
from common.gradients.kept_rows import RecomputedGradients, StoredGradients
from common.gradients.layer_gradients import LayerwiseGradients
from common.sketches.basis import basis_of_samples
from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.geometry import ScoredVectors
from common.sketches.influence import exact_self_influence, problem_from_projection, sketched_self_influence
from common.workloads.benchmark import GROUP_SIZE, load_trained_model, random_half
from common.workloads.pairs import load_workload
from common.workloads.training import train_model, train_together

RIDGES = [10.0**e for e in range(-8, -2)]
NUM_QUERIES = 200
SEED = 42
NOISE_SKETCHES = 20
ENOUGH_SECONDS = 2.0
MOST_PASSES = 9


def compare_sweeps(benchmark_dir: Path, num_train: int, max_m: int) -> pd.DataFrame:
    """Return one row a (route, m): seconds of sketch and scores for all λ (see `run_route`), memory, ε_95.

    Memory is that of the process while one m is worked through: `peak_memory_bytes` with all it holds (our route:
    coordinates; the others: d-dimensional gradients), `added_memory_bytes` what came on top of it. Making gradients
    and geometry is in neither. `reference_eps_95` and `noise_eps_95` are mean and standard deviation of ε_95 over
    more sketches of coordinates.
    """
    tables = [_in_own_process(_sweep, route, benchmark_dir, num_train, max_m) for route in ROUTES.values()]
    for name, table in zip(ROUTES, tables, strict=True):
        table.insert(0, "what", "sweep")
        table.insert(1, "route", name)
    noise = _in_own_process(_noise, benchmark_dir, num_train, max_m)
    return pd.concat(tables, ignore_index=True).merge(noise, on="m")


def compare_preparation(benchmark_dir: Path, num_train: int) -> pd.DataFrame:
    """Return one row a route: seconds of gradients, Gram matrix, ground-truth models, EK-FAC; memory as above.

    Memory includes what the step has made.
    """
    rows = []
    for what, route, step in [*STEPS, *language_model.steps(), *kronecker.steps(), *factors.steps(), *stores.steps()]:
        measured = _in_own_process(_timed_step, step, benchmark_dir, num_train)
        rows.append({"what": what, "route": route, **measured})
    return pd.DataFrame(rows)


def _in_own_process(function: Callable, *args):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args).result()


def _dimensions(max_m: int) -> list[int]:
    return [m for j in range(max_m.bit_length()) if (m := 2**j) >= MIN_M]


def _sweep(route: Callable, benchmark_dir: Path, num_train: int, max_m: int) -> pd.DataFrame:
    workload, model, geometry, exact = _prepared(benchmark_dir, num_train)
    return run_route(route, workload, model, geometry, exact, _dimensions(max_m))


def run_route(route: Callable, workload, model, geometry, exact, ms: list[int]) -> pd.DataFrame:
    """Return one row an m: seconds, ε_95 (mean over λ) and memory of one route.

    A route is repeated, with the same random numbers, until it has run for ENOUGH_SECONDS; a row has the median.
    """
    passes: list[pd.DataFrame] = []
    start = time.perf_counter()
    while not passes or (time.perf_counter() - start < ENOUGH_SECONDS and len(passes) < MOST_PASSES):
        rows = [
            {"m": m, "seconds": seconds, "eps_95": _eps_95(scores, exact), **memory}
            for m, seconds, scores, memory in route(workload, model, geometry, ms)
        ]
        passes.append(pd.DataFrame(rows))
    medians = pd.concat(passes).groupby("m", as_index=False).median()
    return medians.astype({name: int for name in medians.columns if name.endswith("_bytes")})


def _noise(benchmark_dir: Path, num_train: int, max_m: int) -> pd.DataFrame:
    _, _, geometry, exact = _prepared(benchmark_dir, num_train)
    return measure_noise(geometry, exact, _dimensions(max_m))


def measure_noise(geometry, exact, ms: list[int]) -> pd.DataFrame:
    """Return one row an m: mean and standard deviation of ε_95 over sketches of the coordinates."""
    found = [
        {"m": m, "eps_95": _eps_95(scores, exact)}
        for trial in range(1, NOISE_SKETCHES + 1)
        for m, _, scores, _ in _coordinates(None, None, geometry, ms, trial)
    ]
    groups = pd.DataFrame(found).groupby("m")["eps_95"]
    return pd.DataFrame({"reference_eps_95": groups.mean(), "noise_eps_95": groups.std()}).reset_index()


def _prepared(benchmark_dir: Path, num_train: int):
    full = load_workload("mnist", "mlp")
    model = load_trained_model(full, benchmark_dir, "cpu", progress=False).model
    workload = load_workload("mnist", "mlp", num_train)
    gradients = RecomputedGradients(LayerwiseGradients(model, workload.loss, workload.train))
    queries = torch.arange(min(NUM_QUERIES, num_train))
    basis = basis_of_samples(gradients.unit_gram(), gradients.norms, num_train)
    geometry = basis.geometry(ScoredVectors(queries))
    exact = [exact_self_influence(geometry.eigenvalues, geometry.queries, ridge) for ridge in RIDGES]
    return workload, model, geometry, exact


def _eps_95(scores: list, exact: list) -> float:
    errors = [(score / truth - 1).abs().quantile(0.95) for score, truth in zip(scores, exact, strict=True)]
    return torch.stack(errors).mean().item()


Measured = Iterator[tuple[int, float, list[torch.Tensor], dict[str, int]]]


def _coordinates(workload, model, geometry, ms, trial: int = 0) -> Measured:
    """Ours: m by m, and to each m its share of the drawing that serves all of them."""
    memory, start = AddedMemory(), time.perf_counter()
    sketch = GaussianCoordinateSketch(geometry.eigenvalues, geometry.queries, RIDGES[0], SEED, trial)
    shared = (time.perf_counter() - start) / len(ms)
    for m in ms:
        start = time.perf_counter()
        problem = sketch.problem(m)
        scores = [sketched_self_influence(problem, ridge) for ridge in RIDGES]
        yield m, shared + time.perf_counter() - start, scores, memory.bytes()


def _dattri(workload, model, geometry, ms) -> Measured:
    """The projector of dattri, whose matrix is drawn a hundred rows at a time; then our solver."""
    from dattri.func.projection import BasicProjector, ProjectionType

    unit = rows_by_layers(workload, model)().div_(geometry.norms[:, None])
    for m in ms:
        memory, start = AddedMemory(), time.perf_counter()
        projector = BasicProjector(unit.shape[1], m, SEED, ProjectionType.normal, torch.device("cpu"))
        projected = projector.project(unit, ensemble_id=0).T
        problem = problem_from_projection(
            projected, geometry.norms, geometry.num_train, geometry.scored.weights(geometry.norms)
        )
        scores = [sketched_self_influence(problem, ridge) for ridge in RIDGES]
        yield m, time.perf_counter() - start, scores, memory.bytes()
        del projector, projected, problem


def _stored_matrix(workload, model, geometry, ms) -> Measured:
    """A stored m x d matrix, and a fresh solve for every λ."""
    gradients = rows_by_layers(workload, model)()
    rows = geometry.scored.query_rows
    queries = gradients[rows] / geometry.norms[rows, None].float()
    for m in ms:
        memory, start = AddedMemory(), time.perf_counter()
        matrix = torch.randn(m, gradients.shape[1], generator=make_generator("cpu", SEED, m)).div_(m**0.5)
        sketched, sketched_queries = (gradients @ matrix.T).double(), (queries @ matrix.T).double()
        fisher = sketched.T @ sketched / geometry.num_train
        scores = []
        for ridge in RIDGES:
            solved = torch.linalg.solve(fisher + ridge * torch.eye(m, dtype=torch.float64), sketched_queries.T)
            scores.append((sketched_queries.T * solved).sum(0))
        yield m, time.perf_counter() - start, scores, memory.bytes()
        del matrix, sketched, sketched_queries, fisher


ROUTES = {"coordinates": _coordinates, "dattri": _dattri, "stored matrix": _stored_matrix}


def _timed_step(step: Callable, benchmark_dir: Path, num_train: int) -> dict[str, float]:
    workload = load_workload("mnist", "mlp", num_train)
    model = load_trained_model(load_workload("mnist", "mlp"), benchmark_dir, "cpu", progress=False).model
    run = step(workload, model)
    memory, start = AddedMemory(), time.perf_counter()
    made = run()
    seconds = time.perf_counter() - start
    measured = {"seconds": seconds, **memory.bytes()}
    del made  # what it has made counts until here
    return measured


def _gram_by_layers(workload, model):
    return lambda: LayerwiseGradients(model, workload.loss, workload.train).gram()


def _gram_multiplied_out(workload, model):
    gradients = rows_by_layers(workload, model)()
    stored = StoredGradients(*gradients.shape, "cpu", torch.float32, torch.device("cpu"))
    stored.write(0, gradients)
    return stored.unit_gram


def _truth_together(workload, model):
    subsets = torch.stack([random_half(len(workload.train), s) for s in range(GROUP_SIZE)])
    return lambda: train_together(workload, subsets, list(range(GROUP_SIZE)), "cpu", progress=False)


def _truth_one_by_one(workload, model):
    subsets = [random_half(len(workload.train), s) for s in range(GROUP_SIZE)]
    return lambda: [train_model(workload, subset, s, "cpu", progress=False) for s, subset in enumerate(subsets)]


STEPS = [
    ("gradients", "layer by layer", rows_by_layers),
    ("gradients", "vmap of grad", rows_by_vmap),
    ("gradients", "one at a time", rows_one_by_one),
    ("Gram matrix", "layer by layer", _gram_by_layers),
    ("Gram matrix", "multiplied out", _gram_multiplied_out),
    ("ground truth", "ten models together", _truth_together),
    ("ground truth", "one at a time", _truth_one_by_one),
]
