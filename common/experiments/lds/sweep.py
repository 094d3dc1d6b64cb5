"""Experiment 2 in numbers: the LDS of one sketch, exact rows, summary over sketches, predictions, recommendation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.experiments.cells import CORRECTIONS, Cells, known_alone
from common.experiments.lds.bootstrap import Resampling, bootstrap_lds, make_resampling
from common.experiments.lds.selection import LdsGrid
from common.experiments.metrics import bootstrap_interval, lds_per_query
from common.experiments.one_sketch import score_sketch
from common.foundations.seeds import make_generator
from common.sketches.geometry import Geometry
from common.sketches.influence import SketchedProblem, exact_influence
from common.theory.lds import predict_lds
from common.theory.ranks import unit_ranks
from common.theory.spectrum import effective_dimension
from common.workloads.benchmark import GroundTruth

SPLIT_STREAM = 1_000_033


@dataclasses.dataclass(frozen=True)
class LdsTask:
    """What attribution has to predict: the losses of the queries after training on each subset."""

    geometry: Geometry
    """Coordinates of the queries, and of the sums of the training gradients of each subset."""
    loss_ranks: Tensor
    """(S, k) ranks of the losses, see metrics.unit_ranks."""
    losses: Tensor
    """(S, k) losses."""
    groups: dict[str, Tensor]
    """`val`: queries that select λ and m; `test`: the others. (k_val,) and (k_test,) int64."""
    cells: Cells
    """Projection dimensions m and ridges λ of the grid."""
    seed: int
    """Of the bootstrap."""
    resampling: Resampling
    """Of subset models and of the queries that select."""
    path: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """m -> predicted best λ, which is measured beside the grid; for some m of the grid."""

    def ridges(self, m: int) -> list[float]:
        """Return λ that are scored at one m: those of the grid, and the predicted best one."""
        return sorted({*self.cells.ridges, *([self.path[m]] if m in self.path else [])})

    @property
    def num_subsets(self) -> int:
        """S."""
        return len(self.losses)


def make_task(
    geometry: Geometry,
    truth: GroundTruth,
    query_samples: Tensor,
    cells: Cells,
    num_val: int,
    seed: int,
) -> LdsTask:
    """Return the task; the subsets behind `truth` are those whose sums the geometry holds.

    `query_samples` are the queries' indices in the test set; `num_val` of them, drawn at random, select λ and m.
    """
    losses = truth.losses[:, query_samples].double()
    order = torch.randperm(len(query_samples), generator=make_generator("cpu", seed, SPLIT_STREAM))
    return LdsTask(
        geometry=geometry,
        loss_ranks=unit_ranks(losses),
        losses=losses,
        groups={"val": order[:num_val].sort().values, "test": order[num_val:].sort().values},
        cells=cells,
        seed=seed,
        resampling=make_resampling(len(losses), num_val, seed),
    )


def measure(problem: SketchedProblem, m: int, trial: int, task: LdsTask) -> list[dict]:
    """Return one row a λ: the LDS of every query under one sketch, and the mean over those that select, resampled."""
    rows = [{"trial": trial, "m": m, "lambda": ridge} for ridge in task.ridges(m)]
    return score_sketch(problem, task.cells, rows, lambda whitened, _: scores_of(whitened, task))


def scores_of(whitened: Tensor, task: LdsTask) -> dict[str, list[float]]:
    """Return what one sketch at one λ gives, from (v, .) whitened vectors."""
    parts = task.geometry.scored.split(whitened)
    val = task.groups["val"]
    resampled = bootstrap_lds(parts.subset_sums @ parts.queries[val].T, task.losses[:, val], task.resampling)
    short = [float(f"{value:.6f}") for value in resampled.tolist()]
    return {"per_query": _lds(whitened, task).tolist(), "val_resampled": short}


def exact_rows(task: LdsTask) -> pd.DataFrame:
    """Return one row a λ with m = inf: the LDS of every query without a sketch, or of the reference sketch."""
    rows = []
    for ridge, solve in zip(task.cells.ridges, task.cells.reference_solves(), strict=True):
        scores = exact_influence(task.geometry.eigenvalues, task.geometry.subset_sums, task.geometry.queries, solve)
        per_query = lds_per_query(scores, task.loss_ranks).tolist()
        rows.append({"trial": 0, "m": math.inf, "lambda": ridge, "per_query": per_query})
    return pd.DataFrame(rows)


def trial_table(units: pd.DataFrame, task: LdsTask) -> pd.DataFrame:
    """Return trials.csv: one row a (trial, m, λ) with the mean LDS of both groups of queries."""
    table = _with_effective_dimension(units[["trial", "m", "lambda"]], task)
    for prefix in _prefixes(units):
        if prefix:
            table[f"{prefix}lambda"] = units[f"{prefix}lambda"]
        solved = units[f"{prefix}per_query"].notna()
        for name, group in task.groups.items():
            values = [_group_values(per_query, group) for per_query in units[f"{prefix}per_query"]]
            table[f"{prefix}{name}_lds"] = [np.nanmean(v) if np.isfinite(v).any() else math.nan for v in values]
            bad = pd.Series([int((~np.isfinite(v)).sum()) for v in values], table.index, dtype="Int64")
            table[f"{prefix}{name}_num_bad"] = bad.where(solved)
    return table


def summarise(units: pd.DataFrame, task: LdsTask) -> pd.DataFrame:
    """Return one row an (m, λ): mean and standard deviation of the LDS over sketches, 95 % intervals over queries."""
    trials = trial_table(units, task)
    groups = trials.groupby(["m", "lambda"], sort=True)
    summary = groups[["d_lambda", "m_over_d_lambda"]].first()
    summary.insert(2, "num_trials", groups.size())
    for prefix in _prefixes(units):
        if prefix:
            summary[f"{prefix}lambda"] = groups[f"{prefix}lambda"].first()
        over_trials = units.groupby(["m", "lambda"], sort=True)[f"{prefix}per_query"]
        for name, group in task.groups.items():
            column = f"{prefix}{name}_lds"
            summary[column] = groups[column].mean()
            summary[f"{column}_std"] = groups[column].std()
            intervals = [_interval(per_query, group, task.seed) for _, per_query in over_trials]
            summary[f"{column}_low"], summary[f"{column}_high"] = zip(*intervals, strict=True)
            # sums miss nothing; a column that may would turn NaN of whole rows into pandas' NA
            summary[f"{prefix}{name}_num_bad"] = groups[f"{prefix}{name}_num_bad"].sum().astype("int64")
    return summary.reset_index()


def predict(ms: Sequence[int], task: LdsTask, ridges: Sequence[float] | None = None) -> pd.DataFrame:
    """Return one row an (m, λ): the closed-form LDS of both groups, mean and standard deviation over sketches.

    `ridges` are those of the grid where none are given.
    """
    ridges = task.cells.ridges if ridges is None else ridges
    index = pd.MultiIndex.from_product([ms, ridges], names=["m", "lambda"]).to_frame(index=False)
    table = _with_effective_dimension(index, task)
    for prefix, corrected in task.cells.corrections.items():
        prediction = predict_lds(
            task.cells.spectrum,
            task.geometry.subset_sums,
            task.geometry.queries,
            task.losses,
            ms,
            ridges,
            groups=list(task.groups.values()),
            corrected=corrected,
            sjlt_columns=task.cells.sjlt_columns,
        )
        for i, name in enumerate(task.groups):
            column = f"predicted_{prefix}{name}_lds"
            table[column] = prediction.mean[i].flatten().tolist()
            table[f"{column}_std"] = prediction.std[i].flatten().tolist()
    return known_alone(table, task.cells)


def join(sketched: pd.DataFrame, exact: pd.DataFrame) -> pd.DataFrame:
    """Return summary.csv: the sketched cells, then the exact ones with m = inf; m prints as an integer or inf."""
    table = pd.concat([sketched, exact], ignore_index=True)
    table["m"] = pd.Series([m if math.isinf(m) else int(m) for m in table["m"]], dtype=object)
    return table


def prediction_gaps(summary: pd.DataFrame) -> dict[str, float | int | None]:
    """Return the median and the worst absolute gap of predicted to measured LDS over the sketched cells, m >= 64."""
    gaps = {}
    for prefix in CORRECTIONS:
        for name in ("val_lds", "test_lds"):
            if f"{prefix}{name}" not in summary:
                continue
            gap = (summary[f"predicted_{prefix}{name}"] - summary[f"{prefix}{name}"]).abs()
            gap = gap[summary["m"] >= 64].dropna()
            gaps[f"{prefix}{name}_gap_median"] = gap.median() if len(gap) else None
            gaps[f"{prefix}{name}_gap_worst"] = gap.max() if len(gap) else None
            gaps[f"{prefix}{name}_gap_cells"] = len(gap)
    return gaps


def selection_grid(trials: pd.DataFrame, exact: pd.DataFrame, task: LdsTask) -> LdsGrid:
    """Return the measured LDS of the grid's own (m, λ) as arrays for the choice rules."""
    ms, trials = task.cells.ms, _on_grid(trials, task)
    shape = (trials["trial"].nunique(), len(ms), len(task.cells.ridges))
    return LdsGrid(
        ms=np.array(ms),
        ridges=np.array(task.cells.ridges),
        effective_dimensions=np.array(task.cells.effective_dimensions),
        val_lds=trials["val_lds"].to_numpy().reshape(shape),
        test_lds=trials["test_lds"].to_numpy().reshape(shape),
        exact_val_lds=exact["val_lds"].to_numpy(),
        exact_test_lds=exact["test_lds"].to_numpy(),
        num_val_queries=len(task.groups["val"]),
    )


def resampled_grid(units: pd.DataFrame, task: LdsTask) -> np.ndarray:
    """Return the (M, R, B) validation LDS of the grid's own (m, λ) in every resample, mean over trials."""
    values = np.array(_on_grid(units, task)["val_resampled"].tolist(), dtype=np.float64)
    return values.reshape(-1, len(task.cells.ms), len(task.cells.ridges), values.shape[1]).mean(0)


def _on_grid(rows: pd.DataFrame, task: LdsTask) -> pd.DataFrame:
    """Return the rows at (m, λ) of the grid, ordered by trial, m and λ."""
    inside = rows["m"].isin(task.cells.ms) & rows["lambda"].isin(task.cells.ridges)
    return rows[inside].sort_values(["trial", "m", "lambda"])


def _lds(whitened: Tensor, task: LdsTask) -> Tensor:
    parts = task.geometry.scored.split(whitened)
    return lds_per_query((parts.subset_sums @ parts.queries.T).cpu(), task.loss_ranks)


def _with_effective_dimension(cells: pd.DataFrame, task: LdsTask) -> pd.DataFrame:
    known = dict(zip(task.cells.ridges, task.cells.effective_dimensions, strict=True))
    others = [ridge for ridge in cells["lambda"].unique() if ridge not in known]
    found = effective_dimension(task.cells.spectrum, torch.tensor(others, dtype=torch.float64)).tolist()
    d_lambda = cells["lambda"].map(known | dict(zip(others, found, strict=True)))
    return cells.assign(d_lambda=d_lambda, m_over_d_lambda=cells["m"] / d_lambda)


def _prefixes(units: pd.DataFrame) -> list[str]:
    return [prefix for prefix in CORRECTIONS if f"{prefix}per_query" in units]


def _group_values(per_query, group: Tensor) -> np.ndarray:
    if not isinstance(per_query, list):  # a cell without a corrected ridge
        return np.full(len(group), math.nan)
    return np.array(per_query, dtype=np.float64)[group.numpy()]


def _interval(per_query: pd.Series, group: Tensor, seed: int) -> tuple[float, float]:
    mean_over_trials = np.mean([_group_values(values, group) for values in per_query], axis=0)
    return bootstrap_interval(torch.from_numpy(mean_over_trials), seed)
