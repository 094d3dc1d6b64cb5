"""The stores of an audit, read once: second moment, F as the sketch shows it, queries and pairs in its coordinates."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.experiments.audit.options import AuditOptions
from common.foundations.distributed import ALONE, Ranks
from common.foundations.errors import UserError
from common.foundations.projections import WITH_LAW
from common.foundations.seeds import make_generator
from common.foundations.storage import first_difference
from common.stores.formats import open_store
from common.stores.moments import Moments, RowReport, check_memory, check_rows, collect
from common.stores.store import Store
from common.theory.added_constant import constant_by_chance
from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis
from common.theory.uneven_columns import MOST_UNEVEN, unevenness

NUM_PAIRS = 2000
SAMPLE_STREAM = 1_000_211
# the laws are those of many columns: on eight, error bars of scores are too short by a tenth, on one by any factor
FEWEST_COLUMNS = 16
# share of M that d_λ may have before error bars become too short
NEAR_M = 0.9
# mean squares of a number beyond which powers in the laws leave float64
SMALLEST_SQUARE, LARGEST_SQUARE = 1e-60, 1e60
# numbers of a query whose length, or scores at any λ, leave float64
SMALLEST_QUERY, LARGEST_QUERY = 1e-140, 1e140


@dataclass(frozen=True)
class Audited:
    """What one pass over the stores leaves."""

    store: Store
    """Training rows."""
    queries_are_rows: bool
    """Whether the queries are training rows."""
    proj_type: str
    """Law of P: normal, rademacher, sjlt, kronecker or blocks."""
    moments: Moments
    """S, sums of subsets, rows that were kept."""
    basis: Tensor
    """(M, M') float64 eigenvectors of S, in the order of `spectrum.eigenvalues`; M' columns are not all zero."""
    spectrum: SketchedSpectrum
    """F as S shows it."""
    queries: Tensor
    """(k, M) float64 query rows as stored."""
    query_rows: Tensor
    """(k,) int64 training rows that the queries are, where `queries_are_rows`; else 0 .. k−1."""
    query_report: RowReport
    """Zero, coarse and repeated rows among the queries."""
    sample: Tensor
    """(p, M) float64 random training rows, the other side of the pairs of the cross errors."""

    @property
    def law_is_known(self) -> bool:
        """Whether the law of the projection is one that the formulas hold for, and has columns enough."""
        return self.proj_type in WITH_LAW and self.spectrum.size >= FEWEST_COLUMNS

    def unevenness(self, ridges: Tensor) -> Tensor:
        """Return (ridges,) e, by how much more than chance columns of the store differ at λ; NaN where not resolved."""
        return unevenness(self.spectrum, self.basis, ridges)

    def constant_by_chance(self, ridges: Tensor) -> Tensor:
        """Return (ridges,) bounds of the probability that chance alone lets columns have so much in common at λ."""
        return constant_by_chance(self.spectrum, self.basis, ridges)

    def has_error_bars(self, ridges: Tensor) -> Tensor:
        """Return (ridges,) bool: whether standard errors hold at λ."""
        near = self.spectrum.sums(ridges).first <= NEAR_M * self.spectrum.size
        return near & (self.unevenness(ridges) <= MOST_UNEVEN) & self.law_is_known

    @property
    def mean_eigenvalue(self) -> float:
        """Return tr S/M, with M the columns of the store."""
        return self.moments.second.diagonal().mean().item()

    @property
    def tabled_queries(self) -> Tensor:
        """Coordinates of the queries that are not zero, scaled to unit length; for the tables of errors."""
        return _units(self.queries @ self.basis)

    def pairs(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return (p, M) coordinates of both sides of random (training row, query) pairs of unit length."""
        left, right = _units(self.sample @ self.basis), self.tabled_queries
        chosen = torch.randint(len(right), (len(left),), generator=make_generator("cpu", seed, SAMPLE_STREAM, 2))
        return left, right[chosen]


@dataclass(frozen=True)
class Collected:
    """The sums and rows that a pass over the stores leaves, on every rank."""

    moments: Moments
    """S, sums of subsets, rows that were kept."""
    queries: Tensor
    """(k, M) float64 query rows as stored."""
    query_rows: Tensor
    """(k,) int64 training rows that the queries are, or 0 .. k−1."""
    queries_are_rows: bool
    """Whether the queries are training rows."""
    query_report: RowReport
    """Zero, coarse and repeated rows among the queries."""
    sample: Tensor
    """(p, M) float64 random training rows."""


def open_stores(options: AuditOptions) -> tuple[Store, Store | None]:
    """Return the stores of training rows and of queries, checked against each other."""
    store = open_store(options.train, options.format, "train")
    if options.norms is not None:
        if store.norms is not None:
            raise UserError(f"--norms {options.norms}: {options.train} has norms of its own; drop --norms")
        store = store.with_norms(_read_norms(options.norms, store.num_rows))
    store = store.select(options.rows, options.module)
    if options.queries is None:
        return store, None
    queries = open_store(options.queries, options.format, "queries").select(module=options.module)
    if queries.num_columns != store.num_columns:
        raise UserError(
            f"{options.queries} has {queries.num_columns} columns and {options.train} has {store.num_columns}: queries "
            "must be projected as the training gradients were"
        )
    if store.made_of is not None and queries.made_of is not None:
        difference = first_difference(store.made_of, queries.made_of)
        if difference:
            names = f"{options.train} and {options.queries}"
            raise UserError(f"{names} are not of one model and one projection: {difference}")
    _check_modules(store, queries)
    return store, queries


def read(
    options: AuditOptions, store: Store, queries: Store | None, subsets: Tensor | None, ranks: Ranks = ALONE
) -> Audited:
    """Return everything that later steps need, from one pass over each store.

    Args:
        options: what is asked for.
        store: training rows.
        queries: query rows, or None.
        subsets: (s, n) masks of the subsets of a ground truth, or None.
        ranks: who shares the pass over the training rows.
    """
    return see(options, store, collect_rows(options, store, queries, subsets, ranks))


def collect_rows(
    options: AuditOptions, store: Store, queries: Store | None, subsets: Tensor | None, ranks: Ranks
) -> Collected:
    """Return the sums of one pass over each store; arguments as for `read`."""
    generator = make_generator("cpu", options.seed, SAMPLE_STREAM, 1)
    pairs = torch.randint(store.num_rows, (NUM_PAIRS,), generator=generator)
    rows = torch.empty(0, dtype=torch.int64)
    if queries is None:
        rows = torch.randperm(store.num_rows, generator=generator)[: options.num_test_grads].sort().values
    check_memory(store, NUM_PAIRS + (len(rows) if queries is None else queries.num_rows))
    moments = collect(store, subsets, torch.cat([pairs, rows]), ranks)
    sample, own = moments.kept.split([NUM_PAIRS, len(rows)])
    if queries is None:
        points, report = own, moments.rows
    else:
        report = check_rows(queries)
        points = torch.cat([chunk for _, chunk in queries.chunks()])
        rows = torch.arange(len(points))
    if store.norms is not None and not store.norms.any():
        raise UserError(f"{options.norms or options.train}: every norm is zero: there is nothing to audit")
    if not points.any():
        raise UserError(f"{options.queries or options.train}: every query row is zero: there is nothing to score")
    return Collected(moments, points, rows, queries is None, report, sample)


def see(options: AuditOptions, store: Store, collected: Collected) -> Audited:
    """Return F as the second moment shows it, with all that was collected.

    Raises:
        UserError: rows are too short or too long for float64, or no query has anything in common with them.
    """
    square = collected.moments.second.diagonal().mean().item()
    if not SMALLEST_SQUARE <= square <= LARGEST_SQUARE:
        raise UserError(
            f"{options.train}: numbers of size {square**0.5:.2g} leave what float64 can compute with; multiply "
            "training rows and queries by one number (λ goes with its square)"
        )
    eigenvalues, basis = eigenbasis(collected.moments.second)
    sizes = (collected.queries @ basis).abs().amax(1)
    if not sizes.any():
        raise UserError(f"{options.queries}: no query has a column in common with the training rows, all scores are 0")
    beyond = ((sizes > 0) & (sizes < SMALLEST_QUERY)) | (sizes > LARGEST_QUERY)
    if beyond.any():
        query = int(beyond.nonzero()[0])
        raise UserError(
            f"{options.queries or options.train}: query {query} has numbers of size {sizes[query].item():.2g}, whose "
            "squares leave float64; multiply it by a number (its scores go with it)"
        )
    return Audited(
        store=store,
        queries_are_rows=collected.queries_are_rows,
        proj_type=options.proj_type or store.projection or "normal",
        moments=collected.moments,
        basis=basis,
        spectrum=SketchedSpectrum(eigenvalues, collected.moments.rounding),
        queries=collected.queries,
        query_rows=collected.query_rows,
        query_report=collected.query_report,
        sample=collected.sample,
    )


def read_array(path: Path) -> Tensor:
    """Return the array of an .npy file, or the tensor of a .pt file."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.suffix == ".npy":
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (ValueError, TypeError, EOFError) as error:
            raise UserError(f"{path} is no readable .npy file of numbers") from error
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    # torch's unpickler raises whatever the bytes lead it to
    except Exception as error:
        raise UserError(f"{path} is no readable .npy file or file of torch.save") from error
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} holds a {type(tensor).__name__}; it must hold one tensor")
    return tensor


def _check_modules(store: Store, queries: Store) -> None:
    """Raise UserError where both stores have modules, and other ones in the same columns."""
    if not (len(store.modules) > 1 and len(queries.modules) > 1):
        return  # the name of a single matrix says nothing of its columns
    for own, other in itertools.zip_longest(store.modules, queries.modules):
        if own != other:
            spans = (f"{m.name} in columns {m.start}:{m.stop}" if m else "nothing" for m in (own, other))
            raise UserError(
                f"{store.path} and {queries.path} have different modules, {' and '.join(spans)}: their columns must be "
                "those of the same modules in the same order"
            )


def _read_norms(path: Path, num_rows: int) -> Tensor:
    norms = read_array(path).double().squeeze()
    if norms.shape != (num_rows,) or not norms.isfinite().all() or (norms < 0).any():
        raise UserError(
            f"--norms {path}: {num_rows} finite numbers >= 0 are needed, one a row; got {tuple(norms.shape)}"
        )
    return norms


def _units(rows: Tensor) -> Tensor:
    lengths = rows.norm(dim=1, keepdim=True)
    return (rows / lengths)[lengths.flatten() > 0]
