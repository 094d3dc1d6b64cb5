"""How the time of a sketch, and of the geometry before it, grows with n, d and m."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from bench.routes import NUM_QUERIES, RIDGES, SEED
from common.foundations.seeds import make_generator
from common.gradients.gram import gram_of_columns
from common.sketches.basis import basis_of_samples
from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.geometry import Geometry, ScoredVectors
from common.sketches.influence import sketched_self_influence

Result = TypeVar("Result")

TIMED = ("sketch", "geometry")
# Every point is repeated for this long, and the fastest repetition counts.
MIN_SECONDS, MIN_REPEATS = 0.3, 3


def measure_growth(num_train: int) -> pd.DataFrame:
    """Return seconds against n, d and m, the others fixed: of a sketch with scores for all λ, and of the geometry.

    Gradients are synthetic, with a power-law spectrum. d is in the geometry alone (Gram matrix, eigenvectors), which
    is made once for all sketches: of d columns a sketch sees only the coordinates.
    """
    half, d = num_train // 2, 20_000
    cases = [("n", n, (n, d, n)) for n in (half // 2, half, num_train, 2 * num_train)]
    cases += [("d", columns, (half, columns, half)) for columns in (5_000, 10_000, 20_000, 40_000, 80_000)]
    cases += [("m", 2**j, (num_train, d, 2**j)) for j in range(6, 17)]
    geometries = {}
    rows = []
    for axis, value, (n, columns, m) in cases:
        if (n, columns) not in geometries:
            geometries[n, columns] = _timed_geometry(n, columns)
        geometry, geometry_seconds = geometries[n, columns]
        row = {"axis": axis, "value": value, "n": n, "d": columns, "m": m}
        rows.append(row | {"sketch_seconds": _sketch_seconds(geometry, m), "geometry_seconds": geometry_seconds})
    return pd.DataFrame(rows)


def slopes(growth: pd.DataFrame) -> pd.DataFrame:
    """Return the slopes of log seconds over log value on each axis; for m also above the rank alone."""
    parts = dict(list(growth.groupby("axis", sort=False)))
    parts["m, above the rank"] = parts["m"][parts["m"]["value"] >= parts["m"]["n"]]
    rows = []
    for name, part in parts.items():
        fit = {what: np.polyfit(np.log(part["value"]), np.log(part[f"{what}_seconds"]), 1)[0] for what in TIMED}
        rows.append({"axis": name} | {f"{what} slope": slope for what, slope in fit.items()})
    return pd.DataFrame(rows)


def _timed_geometry(n: int, d: int) -> tuple[Geometry, float]:
    generator = make_generator("cpu", SEED, n, d)
    columns = torch.randn(d, n, generator=generator)
    columns *= torch.arange(1, d + 1)[:, None] ** -0.75
    norms = columns.double().norm(dim=0)
    columns /= norms
    scored = ScoredVectors(torch.arange(min(NUM_QUERIES, n)))
    return _fastest(lambda: basis_of_samples(gram_of_columns(columns), norms, n).geometry(scored))


def _sketch_seconds(geometry: Geometry, m: int) -> float:
    def run():
        problem = GaussianCoordinateSketch(geometry.eigenvalues, geometry.queries, RIDGES[0], SEED, trial=0).problem(m)
        for ridge in RIDGES:
            sketched_self_influence(problem, ridge)

    return _fastest(run)[1]


def _fastest(run: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result and the seconds of the fastest of enough repetitions to be more than noise."""
    best, spent, repeats = float("inf"), 0.0, 0
    while repeats < MIN_REPEATS or spent < MIN_SECONDS:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        best, spent, repeats = min(best, seconds), spent + seconds, repeats + 1
    return result, best
