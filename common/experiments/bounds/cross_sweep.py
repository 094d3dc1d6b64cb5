"""Experiment 1 for scores of pairs: errors of B̃(g, q) over training gradients g and queries q, measured, predicted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.experiments.bounds.trial_noise import pooled_quantile_noise
from common.experiments.cells import CELL, CORRECTIONS, Cells, cell_rows, known_alone, predicted_index
from common.experiments.metrics import pooled_errors
from common.experiments.one_sketch import score_sketch
from common.foundations.seeds import make_generator
from common.sketches.geometry import RESOLUTION, Geometry
from common.sketches.influence import SketchedProblem, exact_influence, exact_self_influence
from common.theory.cross_grid import PairsPrediction, predict_pairs, unridged_norms

STATISTICS = ("mean", "50", "95", "99", "max")
PREDICTED = {"whole": "eps", "unridged": "eps0", "in_range": "range_eps", "in_kernel": "kernel_eps"}
QUANTILES = "quantiles"
PAIR_STREAM, NUM_PAIRS = 1_000_039, 2_000


@dataclasses.dataclass(frozen=True)
class CrossTask:
    """The pairs whose scores are sketched, and what their errors are relative to."""

    geometry: Geometry
    """Coordinates of training gradients and queries; and of the queries' parts in ker(F), if those are asked for."""
    cells: Cells
    """Projection dimensions m and ridges λ of the grid."""
    unridged_rank: int
    """Eigenvalues of F behind φ₀: those from 1e-12 tr F on, of which scores are resolved."""
    seed: int
    """Of the bootstrap over trials."""

    @property
    def errors(self) -> tuple[str, ...]:
        """Names of the errors, as they begin columns: parts of the queries only where they have two."""
        return tuple(PREDICTED.values())[: 4 if self.geometry.scored.kernel_parts else 2]

    @property
    def num_pairs(self) -> int:
        """Pairs (g, q)."""
        return len(self.geometry.train) * len(self.geometry.queries)

    def unridged(self) -> tuple[Tensor, Tensor]:
        """Return (p,) √φ₀(g) and (k,) √φ₀(q)."""
        known = self.geometry
        eigenvalues, rank = known.eigenvalues, self.unridged_rank
        return unridged_norms(eigenvalues, known.train, rank), unridged_norms(eigenvalues, known.queries, rank)


@dataclasses.dataclass(frozen=True)
class ExactPairs:
    """Exact scores at one λ."""

    scores: Tensor
    """(p, k) B_λ(g, q)."""
    scale: Tensor
    """(p, k) √φ_λ(g) √φ_λ(q)."""
    unit: Tensor
    """(p, k) √φ_λ(g) √φ_λ(q)/(√φ₀(g) √φ₀(q))."""


def make_task(geometry: Geometry, cells: Cells, seed: int) -> CrossTask:
    """Return the task; φ₀ sees the eigenvalues of F from 1e-12 tr F on."""
    known = int((geometry.eigenvalues >= RESOLUTION * geometry.eigenvalues.sum()).sum())
    return CrossTask(geometry, cells, known, seed)


def exact_pairs(task: CrossTask) -> list[ExactPairs]:
    """Return the exact scores of all pairs for every λ."""
    known, (unridged_train, unridged_queries) = task.geometry, task.unridged()
    found = []
    for ridge in task.cells.ridges:
        left, right = (exact_self_influence(known.eigenvalues, v, ridge).sqrt() for v in (known.train, known.queries))
        unit = (left / unridged_train)[:, None] * (right / unridged_queries)
        scores = exact_influence(known.eigenvalues, known.train, known.queries, ridge)
        found.append(ExactPairs(scores, left[:, None] * right, unit))
    return found


def zero_errors(exact: list[ExactPairs]) -> list[float]:
    """Return for every λ the ε_95 that scores of 0 have: what errors of sketches have to stay well below."""
    return [pooled_errors((one.scores / one.scale).abs()).eps_95 for one in exact]


def measure(problem: SketchedProblem, m: int, trial: int, task: CrossTask, exact: list[ExactPairs]) -> list[dict]:
    """Return one row a λ: the errors of all pairs under one sketch."""
    return score_sketch(
        problem, task.cells, cell_rows(task.cells, m, trial), lambda found, i: pair_errors(found, exact[i], task)
    )


def pair_errors(whitened: Tensor, exact: ExactPairs, task: CrossTask) -> dict[str, float | list[float]]:
    """Return statistics of the errors of all pairs, and what is pooled over trials, from (v, .) whitened vectors."""
    parts = task.geometry.scored.split(whitened)
    difference = (parts.train @ parts.queries.T - exact.scores) / exact.scale
    row: dict[str, float | list[float]] = {"num_bad": int((~difference.isfinite()).sum())}
    kernel = parts.train @ parts.kernel.T / exact.scale if len(parts.kernel) else difference
    errors = (difference, difference * exact.unit, difference - kernel, kernel)
    for name, values in zip(task.errors, errors, strict=False):
        pooled = pooled_errors(values.abs())
        row |= {f"{name}_{statistic}": getattr(pooled, f"eps_{statistic}") for statistic in STATISTICS}
        row[f"{name}_{QUANTILES}"] = list(pooled.quantiles)
    return row


def trial_table(units: pd.DataFrame, task: CrossTask) -> pd.DataFrame:
    """Return trials.csv: one row a (trial, m, λ) with the statistics of one sketch over all pairs."""
    table = units[CELL].assign(num_pairs=task.num_pairs)
    names = [name for name in units if name not in CELL and not name.endswith(QUANTILES)]
    return table.join(units[names])


def summarise(units: pd.DataFrame, task: CrossTask) -> pd.DataFrame:
    """Return one row an (m, λ): statistics pooled over pairs and trials, and how they vary over trials.

    Pooled quantiles are those of 200 equally likely errors of each trial, good to 0.5 % of themselves, the
    99 % one to 2 %, for 20,000 pairs and more; to 1 % and 3 % for 1,000.
    """
    trials = trial_table(units, task)
    by_cell = trials.groupby(["m", "lambda"], sort=True)
    summary = by_cell[["d_lambda", "m_over_d_lambda"]].first()
    summary.insert(2, "num_trials", by_cell.size())
    summary.insert(3, "num_pairs", by_cell["num_pairs"].first())
    for prefix in CORRECTIONS:
        if prefix and "corrected_lambda" in units:
            summary["corrected_lambda"] = by_cell["corrected_lambda"].first()
        for name in task.errors:
            column = f"{prefix}{name}"
            if f"{column}_{QUANTILES}" in units:
                groups = units.groupby(["m", "lambda"], sort=True)[f"{column}_{QUANTILES}"]
                pooled = pd.DataFrame([_pool(values.dropna(), task.seed) for _, values in groups], summary.index)
                pooled["mean"], pooled["max"] = by_cell[f"{column}_mean"].mean(), by_cell[f"{column}_max"].max()
                pooled["95_trial_mean"] = by_cell[f"{column}_95"].mean()
                pooled["95_std"] = by_cell[f"{column}_95"].std()
                order = ["mean", "50", "95", "95_noise", "95_trial_mean", "95_std", "99", "max"]
                summary = summary.join(pooled[order].add_prefix(f"{column}_"))
        if f"{prefix}num_bad" in trials:
            summary[f"{prefix}num_bad"] = by_cell[f"{prefix}num_bad"].sum()
    return summary.reset_index()


def predict(task: CrossTask) -> pd.DataFrame:
    """Return one row an (m, λ): the closed-form law of the errors, over all pairs and sketches."""
    table = predicted_index(task.cells)
    for prefix, law in _laws(task):
        for part, name in zip(PREDICTED, task.errors, strict=False):
            for statistic in STATISTICS[:4]:
                values = getattr(getattr(law, part), f"eps_{statistic}").flatten().tolist()
                table[f"predicted_{prefix}{name}_{statistic}"] = values
    return known_alone(table, task.cells)


def query_table(task: CrossTask, samples: Tensor) -> pd.DataFrame:
    """Return queries.csv: how much of the squared length of each query lies in range(F) and in ker(F)."""
    outside = task.geometry.outside_energy
    length = task.geometry.queries.square().sum(1)
    shares = {"range_share": (length - outside).tolist(), "kernel_share": outside.tolist()}
    return pd.DataFrame({"sample": samples.tolist()} | shares)


def sampled_pairs(task: CrossTask) -> tuple[Tensor, Tensor]:
    """Return (2000, r) coordinates of both sides of random pairs (g, q); pairs without a score are left out."""
    generator = make_generator("cpu", task.seed, PAIR_STREAM)
    train, queries = task.geometry.train, task.geometry.queries
    queries = queries[queries.any(1)]
    chosen = (torch.randint(len(side), (NUM_PAIRS,), generator=generator) for side in (train, queries))
    left, right = (side[rows.to(side.device)] for side, rows in zip((train, queries), chosen, strict=True))
    return left, right


def _laws(task: CrossTask) -> Iterator[tuple[str, PairsPrediction]]:
    known, cells = task.geometry, task.cells
    for prefix, corrected in cells.corrections.items():
        law = predict_pairs(
            cells.spectrum,
            known.train,
            known.queries,
            known.rank,
            task.unridged(),
            cells.ms,
            cells.ridges,
            corrected,
            cells.sjlt_columns,
            parts=known.scored.kernel_parts,
        )
        yield prefix, law


def _pool(quantiles: pd.Series, seed: int) -> dict[str, float]:
    by_trial = np.array(quantiles.tolist(), dtype=np.float64)
    finite = by_trial[np.isfinite(by_trial)]
    # the i-th of N values stands for the level (i + 1/2)/N, as in what every trial has kept
    levels = np.quantile(finite, [0.5, 0.95, 0.99], method="hazen") if len(finite) else [math.nan] * 3
    noise = pooled_quantile_noise(by_trial, 0.95, seed) if len(by_trial) else math.nan
    return dict(zip(("50", "95", "99"), levels, strict=True)) | {"95_noise": noise}
