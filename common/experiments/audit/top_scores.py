"""The training rows with the largest and the smallest scores of every query, and which of them are significant."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr
from torch import Tensor

from common.experiments.audit.scores import Scorer, in_blocks, stream
from common.foundations.distributed import ALONE, Ranks
from common.stores.store import Store

LEVEL = 0.05
# queries whose best rows are looked for in one pass
QUERIES_AT_ONCE = 2048
# rows of the largest |z| that the first pass keeps of every query
MOST_SIGNIFICANT = 256
# of the |z| of all rows, for queries with more sharp rows than those
SECOND_LOOK_BYTES = 2**29
SIGNS = ("positive", "negative")


def top_scores(scorer: Scorer, store: Store, query_rows: Tensor, top_k: int, ranks: Ranks = ALONE) -> pd.DataFrame:
    """Return for every query the `top_k` largest and the `top_k` smallest scores, and which are significant.

    Significant means that Holm's procedure rejects "the score is 0" at 5 % for this query, over all n training rows.
    Without error bars these columns are empty.

    Args:
        scorer: k queries.
        store: training rows.
        query_rows: (k,) what the queries are called.
        top_k: rows of each query and sign.
        ranks: who shares the work; all of them return the same.
    """
    num_queries = len(scorer.queries)
    store = in_blocks(store, min(num_queries, QUERIES_AT_ONCE))
    parts = [
        _block(scorer.of(slice(start, start + QUERIES_AT_ONCE)), store, top_k, ranks)
        for start in range(0, num_queries, QUERIES_AT_ONCE)
    ]
    rows, values, holm_p = (
        np.concatenate(part, axis) for part, axis in zip(zip(*parts, strict=True), (0, 1, 0), strict=True)
    )
    count = rows.shape[2]
    score, error, z = values.reshape(3, -1)
    table = pd.DataFrame(
        {
            "query": np.repeat(query_rows.numpy(), 2 * count),
            "sign": np.tile(np.repeat(SIGNS, count), num_queries),
            "rank": np.tile(np.arange(1, count + 1), 2 * num_queries),
            "row": rows.flatten(),
            "score": score,
            "standard_error": error,
            "z": z,
            "holm_p": holm_p.flatten(),
        }
    )
    if not scorer.has_error_bars:
        return table.assign(z=np.nan, significant=pd.array([pd.NA] * len(table), dtype="boolean"))
    return table.assign(significant=table["holm_p"] <= LEVEL)


def significant_counts(table: pd.DataFrame) -> pd.Series:
    """Return for every query how many of its rows in `top_scores` are significant."""
    return table.groupby("query")["significant"].sum()


def holm(sharpest: np.ndarray, listed: np.ndarray, num_rows: int) -> np.ndarray:
    """Return p-values after Holm's correction, max over j <= rank of (n − j + 1) p_(j), at most 1.

    Args:
        sharpest: the largest |z| among n, descending.
        listed: any of the |z|; for one that is not among the `sharpest` the result is a lower bound, and right if 1.
        num_rows: n.
    """
    adjusted = np.maximum.accumulate((num_rows - np.arange(len(sharpest))) * (2 * ndtr(-sharpest))).clip(max=1)
    return adjusted[np.searchsorted(-sharpest, -listed, side="right") - 1]


def _block(scorer: Scorer, store: Store, top_k: int, ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of queries that one pass can do (k, 2, t) rows, (3, k, 2, t) values as in `_Best`, and (k, 2, t) p."""
    squares = torch.zeros(store.num_rows, dtype=torch.float64)
    highest, lowest, sharpest = (_Best(len(scorer.queries), size) for size in (top_k, top_k, MOST_SIGNIFICANT))
    for start, scores, errors in stream(scorer, store, ranks=ranks, squares=squares):
        z = _z(scores, errors)
        three = (scores, errors, z)
        highest.add(start, scores, three)
        lowest.add(start, -scores, three)
        sharpest.add(start, z.abs(), three)
    for best in (highest, lowest, sharpest):
        best.merge(ranks)
    rows = torch.stack([highest.rows, lowest.rows], 1).numpy()
    values = torch.stack([highest.values, lowest.values], 2).numpy()
    if not scorer.has_error_bars:
        return rows, values, np.full(rows.shape, np.nan)
    sizes, kept = np.abs(values[2]), sharpest.keys.numpy()
    holm_p = np.stack([holm(*both, store.num_rows) for both in zip(kept, sizes, strict=True)])
    # beyond the rows that were kept p is known only where it is 1
    is_open = np.any((sizes < kept[:, -1, None, None]) & (holm_p < 1), axis=(1, 2))
    again = ranks.first(lambda: np.flatnonzero(is_open).tolist())
    at_once = max(1, SECOND_LOOK_BYTES // (8 * store.num_rows))
    for first in range(0, len(again), at_once):
        part = again[first : first + at_once]
        for query, whole in zip(part, _all_sizes(scorer.of(part), store, squares, ranks), strict=True):
            holm_p[query] = holm(np.sort(whole)[::-1], whole[rows[query]], store.num_rows)
    return rows, values, holm_p


def _all_sizes(scorer: Scorer, store: Store, squares: Tensor, ranks: Ranks) -> np.ndarray:
    """Return (k, n) |z|."""
    sizes = torch.zeros(len(scorer.queries), store.num_rows, dtype=torch.float64)
    for start, scores, errors in stream(scorer, store, ranks=ranks, squares=squares):
        sizes[:, start : start + scores.shape[1]] = _z(scores, errors).abs_()
    ranks.add_up(sizes)
    return sizes.numpy()


def _z(scores: Tensor, errors: Tensor) -> Tensor:
    # a zero row has score 0 and no error: it says nothing
    return torch.where(errors > 0, scores / errors, 0)


class _Best:
    """The largest values of every query while chunks pass by."""

    def __init__(self, num_queries: int, size: int):
        self._size = size
        self.keys = torch.empty(num_queries, 0, dtype=torch.float64)
        """(k, s) what they are the largest by, descending."""
        self.rows = torch.empty(num_queries, 0, dtype=torch.int64)
        """(k, s) training rows."""
        self.values = torch.empty(3, num_queries, 0, dtype=torch.float64)
        """(3, k, s) score, standard error and z."""

    def add(self, start: int, keys: Tensor, values: tuple[Tensor, Tensor, Tensor]) -> None:
        """Take in (k, b) keys and the (k, b) scores, standard errors and z that go with them."""
        few = keys.topk(min(self._size, keys.shape[1]), dim=1)
        self._keep(few.values, few.indices + start, torch.stack([part.gather(1, few.indices) for part in values]))

    def merge(self, ranks: Ranks) -> None:
        """Take in what the other ranks have kept."""
        for rank, kept in enumerate(ranks.gather((self.keys, self.rows, self.values))):
            if rank != ranks.rank:
                self._keep(*kept)

    def _keep(self, keys: Tensor, rows: Tensor, values: Tensor) -> None:
        keys = torch.cat([self.keys, keys], 1)
        rows = torch.cat([self.rows, rows], 1)
        values = torch.cat([self.values, values], 2)
        self.keys, order = keys.topk(min(self._size, keys.shape[1]), dim=1)
        self.rows = rows.gather(1, order)
        self.values = values.gather(2, order.expand(3, -1, -1))
