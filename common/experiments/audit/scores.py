"""Ridge-corrected scores with their standard errors, streamed over the training rows.

With S the second moment of a sketch of size M, κ the solve that acts like the ridge λ and w = (t+κ)⁻¹,

    B̃(g, q) = Σ w y z ,     se(g, q)² = [Σ w²y² Σ w²z² + (Σ w²yz)²] / Σ w² ,     y, z = Pg, Pq in the eigenbasis of S,

which is μ²/ν [ψ(g,g) ψ(q,q) + ψ(g,q)²] with everything in it estimated from the sketch (common/theory/sketch_law.py).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from torch import Tensor

from common.experiments.audit.reading import Audited
from common.foundations.distributed import ALONE, Ranks
from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.stores.store import Store

LEVEL = 0.05
# rows of the largest |z| that Holm's procedure looks at beside the top rows: leaving rows out can only reject less
MOST_SIGNIFICANT = 256


@dataclass(frozen=True)
class Scorer:
    """What turns a chunk of training rows into scores and standard errors."""

    ridge: float
    """λ."""
    solve: float
    """κ, with which S is solved."""
    inverse: Tensor
    """(M, M) float64 (S + κI)⁻¹."""
    noise: float
    """Σ w²."""
    queries: Tensor
    """(k, M) float64 queries."""
    has_error_bars: bool = True
    """Whether standard errors hold for this projection and λ; where not they are NaN."""

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (k, b) scores and standard errors of (b, M) float64 training rows."""
        damped, damped_queries = rows @ self.inverse, self.queries @ self.inverse
        lengths = damped_queries.square().sum(1)[:, None] * damped.square().sum(1)
        errors = ((lengths + (damped_queries @ damped.T).square()) / self.noise).sqrt()
        return self.queries @ damped.T, errors if self.has_error_bars else torch.full_like(errors, torch.nan)


def make_scorer(audited: Audited, ridge: float) -> Scorer:
    """Return the scorer for the ridge λ, without error bars where those of this store do not hold.

    Raises:
        UserError: the store cannot see λ.
    """
    spectrum = audited.spectrum
    known = torch.tensor([ridge], dtype=torch.float64)
    solve = spectrum.solve_of_ridge(known)
    if not solve.isfinite():
        raise UserError(
            f"--ridge {ridge:g} is below {spectrum.smallest_ridge:.3g}, the smallest ridge that this store of "
            f"M = {spectrum.size} columns can see"
        )
    w = 1 / (spectrum.eigenvalues + solve)
    inverse = audited.basis * w @ audited.basis.T
    has_error_bars = bool(audited.has_error_bars(known))
    return Scorer(ridge, solve.item(), inverse, w.square().sum().item(), audited.queries, has_error_bars)


def share(scorer: Scorer | None, queries: Tensor, ranks: Ranks) -> Scorer:
    """Return the scorer of rank 0 on every rank; others give None, and the (k, M) queries that all of them know."""
    known = (scorer.ridge, scorer.solve, scorer.noise, scorer.has_error_bars) if scorer else (0.0, 0.0, 0.0, False)
    ridge, solve, noise, has_error_bars = ranks.first(lambda: known)
    size = queries.shape[1]
    inverse = scorer.inverse if scorer is not None else torch.zeros(size, size, dtype=torch.float64)
    ranks.add_up(inverse)
    return Scorer(ridge, solve, inverse, noise, queries, has_error_bars)


def stream(scorer: Scorer, store: Store, first: int = 0, ranks: Ranks = ALONE) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first row, (k, b) scores, (k, b) standard errors) over the chunks of a store from row `first` on.

    Of several ranks, each has its part of the chunks.
    """
    with progress_bar("scores", store.rows_dealt(ranks.rank, ranks.size), "row") as progress:
        for start, rows in store.chunks(ranks.rank, ranks.size):
            if start >= first:
                yield start, *scorer.scores(rows)
            progress.update(len(rows))


def best_scores(scorer: Scorer, store: Store, top_k: int, ranks: Ranks = ALONE) -> tuple[_Best, _Best, _Best]:
    """Return the largest, smallest and sharpest scores of every query, of the rows of all ranks."""
    highest, lowest, sharpest = (_Best(len(scorer.queries), size) for size in (top_k, top_k, MOST_SIGNIFICANT))
    for start, scores, errors in stream(scorer, store, ranks=ranks):
        # a zero row has score 0 and no error: it says nothing
        z = torch.where(errors > 0, scores / errors, 0)
        values = torch.stack([scores, errors, z])
        highest.add(start, scores, values)
        lowest.add(start, -scores, values)
        sharpest.add(start, z.abs(), values)
    for best in (highest, lowest, sharpest):
        best.merge(ranks)
    return highest, lowest, sharpest


def top_scores(scorer: Scorer, audited: Audited, top_k: int, ranks: Ranks = ALONE) -> pd.DataFrame:
    """Return for every query the `top_k` largest and the `top_k` smallest scores, and which are significant.

    Significant means that Holm's procedure rejects "the score is 0" at 5 % for this query, over all n training rows.
    Without error bars these columns are empty.
    """
    store = audited.store
    highest, lowest, sharpest = best_scores(scorer, store, top_k, ranks)
    tables = []
    with _cheap_collections():
        for query, row in enumerate(audited.query_rows.tolist()):
            both = [best.of(query) for best in (highest, lowest)]
            p_values = _holm(pd.concat([*both, sharpest.of(query)])[["row", "z"]], store.num_rows)
            for sign, table in zip(("positive", "negative"), both, strict=True):
                table["holm_p"] = table["row"].map(p_values)
                table.insert(0, "rank", range(1, len(table) + 1))
                table.insert(0, "sign", sign)
                table.insert(0, "query", row)
                tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    if not scorer.has_error_bars:
        return whole.assign(z=np.nan, holm_p=np.nan, significant=pd.array([pd.NA] * len(whole), dtype="boolean"))
    return whole.assign(significant=whole["holm_p"] <= LEVEL)


def significant_counts(table: pd.DataFrame) -> pd.Series:
    """Return for every query how many of its rows in `top_scores` are significant."""
    return table.groupby("query")["significant"].sum()


class _Best:
    """The largest values of every query while chunks pass by."""

    def __init__(self, num_queries: int, size: int):
        self._size = size
        self._keys = torch.empty(num_queries, 0, dtype=torch.float64)
        self._rows = torch.empty(num_queries, 0, dtype=torch.int64)
        self._values = torch.empty(3, num_queries, 0, dtype=torch.float64)

    def add(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Take in (k, b) keys and the (3, k, b) score, standard error and z that go with them."""
        few = keys.topk(min(self._size, keys.shape[1]), dim=1)
        self._keep(few.values, few.indices + start, values.gather(2, few.indices.expand(3, -1, -1)))

    def merge(self, ranks: Ranks) -> None:
        """Take in what the other ranks have kept."""
        for rank, kept in enumerate(ranks.gather((self._keys, self._rows, self._values))):
            if rank != ranks.rank:
                self._keep(*kept)

    def _keep(self, keys: Tensor, rows: Tensor, values: Tensor) -> None:
        keys = torch.cat([self._keys, keys], 1)
        rows = torch.cat([self._rows, rows], 1)
        values = torch.cat([self._values, values], 2)
        self._keys, order = keys.topk(min(self._size, keys.shape[1]), dim=1)
        self._rows = rows.gather(1, order)
        self._values = values.gather(2, order.expand(3, -1, -1))

    def of(self, query: int) -> pd.DataFrame:
        """Return what one query has kept, largest key first."""
        score, error, z = self._values[:, query].tolist()
        return pd.DataFrame({"row": self._rows[query].tolist(), "score": score, "standard_error": error, "z": z})


@contextmanager
def _cheap_collections() -> Iterator[None]:
    """Keep what exists out of garbage collections: `multipletests` asks for one in every call, 0.2 s each."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _holm(rows: pd.DataFrame, num_rows: int) -> dict[int, float]:
    """Return row -> p-value after Holm's correction for `num_rows` tests, of which those missing here have p = 1."""
    rows = rows.drop_duplicates("row")
    p = 2 * norm.sf(rows["z"].abs().to_numpy())
    order = np.argsort(p)
    padded = np.ones(num_rows)
    padded[: len(p)] = p[order]
    corrected = multipletests(padded, LEVEL, method="holm", is_sorted=True)[1]
    return dict(zip(rows["row"].to_numpy()[order].tolist(), corrected[: len(p)].tolist(), strict=True))
