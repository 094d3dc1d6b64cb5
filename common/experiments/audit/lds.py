"""LDS of the stored sketch and of its folds, over λ, and what follows for the choice of λ and m."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.experiments.audit.reading import Audited
from common.experiments.audit.truth import AuditTruth
from common.experiments.lds.selection import LdsGrid, Selection, select
from common.experiments.metrics import lds_per_query
from common.foundations.errors import UserError
from common.foundations.seeds import make_generator
from common.stores.moments import fold, fold_rows
from common.theory.ranks import unit_ranks
from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis

SMALLEST_FOLD = 16
SPLIT_STREAM = 1_000_033


def measure(audited: Audited, truth: AuditTruth, ridges: list[float], val_ratio: float, seed: int) -> pd.DataFrame:
    """Return one row an (m, λ), m = M, M/2, M/4, ...: LDS of plain solves with λ, and of ridge-corrected ones.

    Queries are split into those that select and those that only judge as hyperparam_selection.py does it.
    """
    ranks = unit_ranks(truth.losses)
    groups = _split(len(audited.queries), val_ratio, seed)
    second, sums, queries, rounding = (
        audited.moments.second,
        audited.moments.sums,
        audited.queries,
        audited.moments.rounding,
    )
    if sums is None:
        raise ValueError("the stores were read without the subsets of the ground truth")
    d_lambda = audited.spectrum.sums(torch.tensor(ridges, dtype=torch.float64)).first.tolist()
    rows: list[dict[str, float]] = []
    while len(second) >= SMALLEST_FOLD or not rows:
        t, basis = eigenbasis(second)
        spectrum = SketchedSpectrum(t, rounding)
        a, q, t = sums @ basis, queries @ basis, t.clamp(min=0)
        for ridge, d in zip(ridges, d_lambda, strict=True):
            row = {"m": len(second), "lambda": ridge, "d_lambda": d}
            row |= _lds(a, q, t + ridge, ranks, groups, "")
            corrected = spectrum.solve_of_ridge(torch.tensor(ridge, dtype=torch.float64))
            row |= _lds(a, q, t + corrected, ranks, groups, "corrected_")
            rows.append(row)
        second, sums, queries, rounding = fold(second), fold_rows(sums), fold_rows(queries), 2 * rounding
    table = pd.DataFrame(rows).sort_values(["m", "lambda"], ignore_index=True)
    return table.astype({name: "Int64" for name in table if name.endswith("num_bad")})


def best_ridge(table: pd.DataFrame) -> float | None:
    """Return the λ whose corrected solve of the whole store has the best validation LDS; None where none has any."""
    own = table[table["m"] == table["m"].max()].dropna(subset=["corrected_val_lds"])
    return None if own.empty else float(own.loc[own["corrected_val_lds"].idxmax(), "lambda"])


def choose(table: pd.DataFrame, num_val: int) -> tuple[Selection, dict[str, float | None]]:
    """Return the choice as hyperparam_selection.py makes it, and the best λ for every m, by validation LDS."""
    wide = {name: table.pivot(index="m", columns="lambda", values=name) for name in ("val_lds", "test_lds")}
    grid = wide["val_lds"]
    unknown = np.full(grid.shape[1], math.nan)  # there is no unsketched LDS
    dimensions = table.drop_duplicates("lambda").sort_values("lambda")["d_lambda"].to_numpy()
    selection = select(
        LdsGrid(
            ms=grid.index.to_numpy(),
            ridges=grid.columns.to_numpy(),
            effective_dimensions=dimensions,
            val_lds=grid.to_numpy()[None],
            test_lds=wide["test_lds"].to_numpy()[None],
            exact_val_lds=unknown,
            exact_test_lds=unknown,
            num_val_queries=num_val,
        )
    )
    known = tuple(w for w in selection.warnings if "LDS is not finite in 0 of" not in w)
    ridges = grid.columns.to_numpy()
    best = {str(m): float(ridges[np.nanargmax(row)]) if row.notna().any() else None for m, row in grid.iterrows()}
    return dataclasses.replace(selection, warnings=known), best


def num_val_queries(num_queries: int, val_ratio: float) -> int:
    """Return how many queries select; UserError where either group would be empty."""
    count = round(val_ratio * num_queries)
    if not 0 < count < num_queries:
        raise UserError(
            f"--val_ratio {val_ratio:g} of {num_queries} queries leaves {count} to select and {num_queries - count} to "
            "judge; both must be at least 1"
        )
    return count


def _split(num_queries: int, val_ratio: float, seed: int) -> dict[str, Tensor]:
    count = num_val_queries(num_queries, val_ratio)
    order = torch.randperm(num_queries, generator=make_generator("cpu", seed, SPLIT_STREAM))
    return {"val": order[:count], "test": order[count:]}


def _lds(a: Tensor, q: Tensor, damped: Tensor, ranks: Tensor, groups: dict[str, Tensor], prefix: str) -> dict:
    per_query = lds_per_query((a / damped) @ q.T, ranks)
    row = {}
    for name, group in groups.items():
        values = per_query[group]
        row[f"{prefix}{name}_lds"] = values.nanmean().item()
        row[f"{prefix}{name}_num_bad"] = math.nan if damped.isnan().any() else int((~values.isfinite()).sum())
    return row
