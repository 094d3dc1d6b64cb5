"""The steps of an audit: what is read, written and recorded on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from common.experiments.audit import lds, reading, scores, tables, units
from common.experiments.audit.options import AuditOptions
from common.experiments.audit.reading import Audited
from common.experiments.audit.score_files import dtype_of, write_scores
from common.experiments.audit.top_scores import top_scores
from common.experiments.audit.truth import AuditTruth, read_truth
from common.experiments.lds.selection import recommendation
from common.experiments.run import Run
from common.foundations.distributed import Ranks
from common.foundations.errors import UserError
from common.foundations.tensor_files import fingerprint
from common.stores.moments import Moments
from common.stores.store import Store, dtype_name


def read_stores(options: AuditOptions, run: Run, ranks: Ranks) -> tuple[Audited, AuditTruth | None]:
    """Return what one pass over the stores leaves, and the ground truth if there is one."""
    store, queries, truth = _open(options)
    law = options.proj_type or store.projection or "normal"
    print(f"{store.format}: {store.num_rows} x {store.num_columns} {dtype_name(store.dtype)}, projection {law}")
    with run.phase("reading"):
        audited = reading.read(options, store, queries, None if truth is None else truth.masks, ranks)
    losses = [] if truth is None else [truth.losses]
    run.record(
        data_fingerprint=fingerprint(audited.moments.second, audited.queries, *losses),
        checkpoint_fingerprint=None,
        workload_checksum=None,
        device="cpu",
        format=store.format,
        dtype=dtype_name(store.dtype),
        proj_type=law,
        n=store.num_rows,
        m=store.num_columns,
        k=len(audited.queries),
        smallest_resolved_ridge=audited.spectrum.smallest_ridge,
    )
    run.announce_replacement()
    return audited, truth


def assist(options: AuditOptions, ranks: Ranks) -> None:
    """Do the part of a rank other than 0: rows for the sums of `read_stores`, and their scores for `score`."""
    store, queries, truth = _open(options)
    collected = reading.collect_rows(options, store, queries, None if truth is None else truth.masks, ranks)
    scorer = scores.share(None, collected.queries, ranks)
    top = top_scores(scorer, store, collected.query_rows, options.top_k, ranks)
    if options.write_scores is not None:
        _write_all(options.write_scores, scorer, store, collected.moments, top, ranks)


def _open(options: AuditOptions) -> tuple[Store, Store | None, AuditTruth | None]:
    store, queries = reading.open_stores(options)
    truth = None
    if options.ground_truth and queries is not None:
        lds.num_val_queries(queries.num_rows, options.val_ratio)
        truth = read_truth(options.ground_truth, store.num_rows, queries.num_rows)
    return store, queries, truth


def ridges_of(options: AuditOptions, audited: Audited) -> list[float]:
    """Return the grid of λ, with the one that was asked for."""
    grid = options.ridges(audited.mean_eigenvalue)
    return grid if options.ridge is None else sorted({*grid, options.ridge})


def check_resolved(audited: Audited, dimensions: pd.DataFrame) -> None:
    """Refuse to go on where the store can see none of the λ."""
    if not dimensions["resolved"].any():
        limit = (
            f"{audited.spectrum.smallest_ridge:.3g}, the smallest ridge that M = {audited.spectrum.size} columns show"
        )
        raise UserError(f"every λ of the grid, up to {dimensions['lambda'].max():.3g}, is below {limit}")


def measure_lds(
    options: AuditOptions, run: Run, audited: Audited, truth: AuditTruth, ridges: list[float]
) -> pd.DataFrame:
    """Write lds.csv and selection.json; return the former."""
    with run.phase("lds"):
        table = lds.measure(audited, truth, ridges, options.val_ratio, options.seed)
    run.write_table("lds.csv", table)
    selection, best = lds.choose(table, lds.num_val_queries(len(audited.queries), options.val_ratio))
    run.write_json("selection.json", dataclasses.asdict(selection) | {"lambda_star_of_m": best})
    print(f"\nutility-driven: {recommendation(selection)}")
    for warning in selection.warnings:
        print(f"warning: {warning}")
    return table


def choose_ridge(
    options: AuditOptions, audited: Audited, summary: pd.DataFrame, lds_table: pd.DataFrame | None
) -> tuple[float, str]:
    """Return the λ of the scores, and why it is that one."""
    if options.ridge is not None:
        return options.ridge, "asked for"
    best = None if lds_table is None else lds.best_ridge(lds_table)
    if best is not None:
        return best, "the best validation LDS at M"
    return tables.choose_ridge(summary, options.target_eps, audited)


def score(
    options: AuditOptions, run: Run, audited: Audited, ridge: float, ranks: Ranks
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write top_scores.csv, lambda_units.csv and, where asked for, all scores; return the first two."""
    with run.phase("scores"):
        scorer = scores.share(scores.make_scorer(audited, ridge), audited.queries, ranks)
        top = top_scores(scorer, audited.store, audited.query_rows, options.top_k, ranks)
        run.write_table("top_scores.csv", top)
    if options.write_scores is not None:
        with run.phase("writing scores"):
            _write_all(options.write_scores, scorer, audited.store, audited.moments, top, ranks)
    mean = audited.mean_eigenvalue
    elsewhere = units.library_ridges(ridge, scorer.solve, audited.store.num_rows, mean)
    run.write_table("lambda_units.csv", elsewhere)
    run.record(solve=scorer.solve, mean_eigenvalue=mean, error_bars=scorer.has_error_bars)
    return top, elsewhere


def _write_all(
    folder: Path, scorer: scores.Scorer, store: Store, moments: Moments, top: pd.DataFrame, ranks: Ranks
) -> None:
    dtype = ranks.first(lambda: dtype_of(top))
    norms = [] if store.norms is None else [store.norms]
    write_scores(folder, scorer, store, fingerprint(moments.rows.hashes, *norms), dtype, ranks)
