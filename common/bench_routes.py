"""What `bench.py` times: our routes beside the obvious ones, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.benchmark import GROUP_SIZE, load_trained_model, random_half
from common.errors import UserError
from common.geometry import build_geometry
from common.gradients import RecomputedGradients, StoredGradients, compute_by_layers, compute_by_vmap
from common.influence import (
    GaussianCoordinateSketch,
    exact_self_influence,
    problem_from_projection,
    sketched_self_influence,
)
from common.layer_gradients import LayerwiseGradients
from common.layer_layout import layer_layout
from common.projectors import make_generator
from common.training import train_model, train_together
from common.workloads import load_workload

RIDGES = [10.0**e for e in range(-8, -2)]
NUM_QUERIES = 200
SEED = 42
# ε_95 of two independent sketches of one law differs by a few percent: queries of one sketch are correlated
AGREEMENT = 0.15


def compare_sweeps(benchmark_dir: Path, num_train: int, max_m: int) -> pd.DataFrame:
    """Return one row a (route, m): seconds of sketch and scores for all λ, peak memory of the process, ε_95."""
    routes = {"coordinates": _coordinates, "dattri": _dattri, "stored matrix": _stored_matrix}
    tables = [_in_own_process(_sweep, route, benchmark_dir, num_train, max_m) for route in routes.values()]
    for name, table in zip(routes, tables, strict=True):
        table.insert(0, "what", "sweep")
        table.insert(1, "route", name)
    return pd.concat(tables, ignore_index=True)


def compare_preparation(benchmark_dir: Path, num_train: int) -> pd.DataFrame:
    """Return one row a route: seconds of gradients, Gram matrix and ground-truth models."""
    steps = [
        ("gradients", "layer by layer", _gradients_by_layers),
        ("gradients", "vmap of grad", _gradients_by_vmap),
        ("gradients", "one at a time", _gradients_one_by_one),
        ("Gram matrix", "layer by layer", _gram_by_layers),
        ("Gram matrix", "multiplied out", _gram_multiplied_out),
        ("ground truth", "ten models together", _truth_together),
        ("ground truth", "one at a time", _truth_one_by_one),
    ]
    rows = []
    for what, route, step in steps:
        seconds, peak = _in_own_process(_timed_step, step, benchmark_dir, num_train)
        rows.append({"what": what, "route": route, "seconds": seconds, "peak_memory_bytes": peak})
    return pd.DataFrame(rows)


def measure_growth(num_train: int) -> pd.DataFrame:
    """Return seconds of a sketch with scores for all λ against n, d and m, the others fixed; best of three."""
    half = num_train // 2
    cases = [("n", n, (n, 20_000, n)) for n in (half // 2, half, num_train, 2 * num_train)]
    cases += [("d", d, (half, d, half)) for d in (5_000, 10_000, 20_000, 40_000, 80_000)]
    cases += [("m", 2**j, (num_train, 20_000, 2**j)) for j in range(6, 17)]
    rows = [{"axis": axis, "value": value, "seconds": _sketch_seconds(*sizes)} for axis, value, sizes in cases]
    return pd.DataFrame(rows)


def slopes(growth: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of log seconds over log value on each axis; for m also above the rank alone."""
    rank = growth.loc[growth["axis"] == "n", "value"].max() // 2
    parts = dict(list(growth.groupby("axis")))
    parts["m, above the rank"] = parts["m"][parts["m"]["value"] >= rank]
    fits = {name: np.polyfit(np.log(part["value"]), np.log(part["seconds"]), 1)[0] for name, part in parts.items()}
    return pd.DataFrame({"axis": list(fits), "log-log slope": list(fits.values())})


def join(sweep: pd.DataFrame, preparation: pd.DataFrame) -> pd.DataFrame:
    """Return both tables with the ratio of every route to ours, the first one named."""
    table = pd.concat([sweep, preparation], ignore_index=True)
    ours = table.groupby(["what", "m"], dropna=False)["seconds"].transform("first")
    return table.assign(ratio_to_ours=table["seconds"] / ours)


def readable(table: pd.DataFrame) -> str:
    """Return the comparison as text: one line a route, the sweep as a whole."""
    total = table.groupby(["what", "route"], sort=False).agg(
        seconds=("seconds", "sum"), peak_gigabytes=("peak_memory_bytes", lambda peak: peak.max() / 1e9)
    )
    ours = total.groupby(level="what", sort=False)["seconds"].transform("first")
    return total.assign(ratio=total["seconds"] / ours).to_string(float_format=lambda value: f"{value:.3g}")


def check_agreement(table: pd.DataFrame) -> None:
    """Print the largest gap of ε_95 between the routes (m >= 64).

    Raises:
        UserError: they differ by more than sketches of one law do.
    """
    sweep = table[(table["what"] == "sweep") & (table["m"] >= 64)]
    by_route = sweep.pivot(index="m", columns="route", values="eps_95")
    gap = (by_route.max(axis=1) / by_route.min(axis=1) - 1).max()
    print(f"largest gap of ε_95 between the routes, m >= 64: {gap:.1%}")
    if not gap <= AGREEMENT:
        raise UserError(f"routes disagree: ε_95 differs by {gap:.1%}, sketches of one law by at most {AGREEMENT:.0%}")


def _in_own_process(function: Callable, *args):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args).result()


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sweep(route: Callable, benchmark_dir: Path, num_train: int, max_m: int) -> pd.DataFrame:
    rows = []
    for m, seconds, eps in route(*_prepared(benchmark_dir, num_train), [2**j for j in range(4, max_m.bit_length())]):
        rows.append({"m": m, "seconds": seconds, "eps_95": eps})
    return pd.DataFrame(rows).assign(peak_memory_bytes=_peak_memory())


def _prepared(benchmark_dir: Path, num_train: int):
    full = load_workload("mnist", "mlp")
    model = load_trained_model(full, benchmark_dir, "cpu", progress=False).model
    workload = load_workload("mnist", "mlp", num_train)
    gradients = RecomputedGradients(LayerwiseGradients(model, workload.loss, workload.train))
    queries = torch.arange(min(NUM_QUERIES, num_train))
    geometry = build_geometry(gradients.unit_gram(), gradients.norms, num_train, queries)
    exact = [exact_self_influence(geometry.eigenvalues, geometry.queries, ridge) for ridge in RIDGES]
    return workload, model, geometry, exact


def _eps_95(scores: list, exact: list) -> float:
    errors = [(score / truth - 1).abs().quantile(0.95) for score, truth in zip(scores, exact, strict=True)]
    return torch.stack(errors).mean().item()


def _coordinates(workload, model, geometry, exact, ms):
    start = time.perf_counter()
    sketch = GaussianCoordinateSketch(geometry.eigenvalues, geometry.queries, RIDGES[0], SEED, trial=0)
    shared = (time.perf_counter() - start) / len(ms)
    for m in ms:
        start = time.perf_counter()
        problem = sketch.problem(m)
        scores = [sketched_self_influence(problem, ridge) for ridge in RIDGES]
        yield m, shared + time.perf_counter() - start, _eps_95(scores, exact)


def _dattri(workload, model, geometry, exact, ms):
    from dattri.func.projection import BasicProjector, ProjectionType

    gradients = _all_gradients(workload, model)
    unit = gradients / geometry.norms[:, None].float()
    for m in ms:
        start = time.perf_counter()
        projector = BasicProjector(unit.shape[1], m, SEED, ProjectionType.normal, torch.device("cpu"))
        projected = projector.project(unit, ensemble_id=0).T
        problem = problem_from_projection(projected, geometry.norms, geometry.num_train, geometry.query_weights())
        scores = [sketched_self_influence(problem, ridge) for ridge in RIDGES]
        yield m, time.perf_counter() - start, _eps_95(scores, exact)


def _stored_matrix(workload, model, geometry, exact, ms):
    gradients = _all_gradients(workload, model)
    queries = (gradients[geometry.query_rows] / geometry.norms[geometry.query_rows, None]).float()
    for m in ms:
        start = time.perf_counter()
        matrix = torch.randn(m, gradients.shape[1], generator=make_generator("cpu", SEED, m)) / m**0.5
        sketched, sketched_queries = (gradients @ matrix.T).double(), (queries @ matrix.T).double()
        fisher = sketched.T @ sketched / geometry.num_train
        scores = []
        for ridge in RIDGES:
            solved = torch.linalg.solve(fisher + ridge * torch.eye(m, dtype=torch.float64), sketched_queries.T)
            scores.append((sketched_queries.T * solved).sum(0))
        yield m, time.perf_counter() - start, _eps_95(scores, exact)


def _all_gradients(workload, model) -> torch.Tensor:
    compute = compute_by_layers(workload, model, layer_layout(model, workload.loss, workload.train))
    return torch.cat([compute(*_batch(workload, start)) for start in range(0, len(workload.train), 32)])


def _batch(workload, start: int, size: int = 32):
    batch = workload.train.subset(slice(start, start + size))
    return batch.inputs, batch.targets


def _timed_step(step: Callable, benchmark_dir: Path, num_train: int) -> tuple[float, int]:
    workload = load_workload("mnist", "mlp", num_train)
    model = load_trained_model(load_workload("mnist", "mlp"), benchmark_dir, "cpu", progress=False).model
    run = step(workload, model)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start, _peak_memory()


def _gradients_by_layers(workload, model):
    return lambda: _all_gradients(workload, model)


def _gradients_by_vmap(workload, model):
    compute = compute_by_vmap(workload, model)
    return lambda: torch.cat([compute(*_batch(workload, start)) for start in range(0, len(workload.train), 32)])


def _gradients_one_by_one(workload, model):
    parameters = list(model.parameters())

    def run():
        rows = []
        for i in range(len(workload.train)):
            inputs, targets = _batch(workload, i, 1)
            found = torch.autograd.grad(workload.loss(model(inputs), targets).sum(), parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

    return run


def _gram_by_layers(workload, model):
    return lambda: LayerwiseGradients(model, workload.loss, workload.train).gram()


def _gram_multiplied_out(workload, model):
    gradients = _all_gradients(workload, model)
    stored = StoredGradients(*gradients.shape, "cpu", torch.float32, Path(), torch.device("cpu"))
    stored.write(0, gradients)
    return stored.unit_gram


def _truth_together(workload, model):
    subsets = torch.stack([random_half(len(workload.train), s) for s in range(GROUP_SIZE)])
    return lambda: train_together(workload, subsets, list(range(GROUP_SIZE)), "cpu", progress=False)


def _truth_one_by_one(workload, model):
    subsets = [random_half(len(workload.train), s) for s in range(GROUP_SIZE)]
    return lambda: [train_model(workload, subset, s, "cpu", progress=False) for s, subset in enumerate(subsets)]


def _sketch_seconds(n: int, d: int, m: int) -> float:
    """Best of three; synthetic gradients with a power-law spectrum, whose geometry is not timed."""
    generator = make_generator("cpu", SEED, n, d)
    scale = torch.arange(1, d + 1, dtype=torch.float64) ** -0.75
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
    norms = rows.norm(dim=1)
    rows /= norms[:, None]
    geometry = build_geometry(rows @ rows.T, norms, n, torch.arange(min(NUM_QUERIES, n)))
    best = float("inf")
    for trial in range(3):
        start = time.perf_counter()
        problem = GaussianCoordinateSketch(geometry.eigenvalues, geometry.queries, RIDGES[0], SEED, trial).problem(m)
        for ridge in RIDGES:
            sketched_self_influence(problem, ridge)
        best = min(best, time.perf_counter() - start)
    return best
