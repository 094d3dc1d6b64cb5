"""Ridge-corrected scores with their standard errors, streamed over the training rows.

With S the second moment of a sketch of size M, κ the solve that acts like the ridge λ and w = (t+κ)⁻¹,

    B̃(g, q) = Σ w y z ,     se(g, q)² = [Σ w²y² Σ w²z² + (Σ w²yz)²] / Σ w² ,     y, z = Pg, Pq in the eigenbasis of S,

which is μ²/ν [ψ(g,g) ψ(q,q) + ψ(g,q)²] with everything in it estimated from the sketch (common/theory/sketch_law.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from common.experiments.audit.reading import Audited
from common.foundations.distributed import ALONE, Ranks
from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.stores.store import Store

# of one queries x rows matrix of float64, of which a handful exist at a time
BLOCK_BYTES = 2**25


@dataclass(frozen=True)
class Scorer:
    """What turns a chunk of training rows into scores and standard errors."""

    ridge: float
    """λ."""
    solve: float
    """κ, with which S is solved."""
    basis: Tensor
    """(M, M') float64 eigenvectors of S."""
    weights: Tensor
    """(M',) float64 w = (t+κ)⁻¹."""
    queries: Tensor
    """(k, M) float64 queries."""
    has_error_bars: bool = True
    """Whether standard errors hold for this projection and λ; where not they are NaN."""

    def of(self, queries: slice | list[int]) -> Scorer:
        """Return the scorer of some of the queries."""
        return replace(self, queries=self.queries[queries])

    def squares(self, rows: Tensor) -> Tensor:
        """Return (b,) Σ w²z² of (b, M) float64 training rows."""
        return (rows @ self.basis).mul_(self.weights).square_().sum(1)

    def scores(self, rows: Tensor, squares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (k, b) scores and standard errors of (b, M) float64 training rows, whose `squares` may be known."""
        lengths, solved, solved_twice = self._sides
        scores = (solved @ rows.T).mul_(lengths)
        if not self.has_error_bars:
            return scores, torch.full_like(scores, torch.nan)
        errors = (solved_twice @ rows.T).square_()
        errors.addr_(solved.square().sum(1), self.squares(rows) if squares is None else squares)
        return scores, errors.div_(self.weights.square().sum()).sqrt_().mul_(lengths)

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """(k, 1) sizes of the queries, and (k, M) (S + κI)⁻¹q and (S + κI)⁻²q of queries of size 1.

        Squares of what a query has in common with a row would leave float64 long before scores do.
        """
        coordinates = self.queries @ self.basis
        sizes = coordinates.abs().amax(1, keepdim=True)
        coordinates /= torch.where(sizes > 0, sizes, 1)
        solved, solved_twice = ((coordinates * w) @ self.basis.T for w in (self.weights, self.weights.square()))
        return sizes, solved, solved_twice


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
    weights = 1 / (spectrum.eigenvalues + solve)
    return Scorer(ridge, solve.item(), audited.basis, weights, audited.queries, bool(audited.has_error_bars(known)))


def share(scorer: Scorer | None, queries: Tensor, ranks: Ranks) -> Scorer:
    """Return the scorer of rank 0 on every rank; others give None, and the (k, M) queries that all of them know."""
    known = (scorer.ridge, scorer.solve, scorer.has_error_bars, len(scorer.weights)) if scorer else (0.0, 0.0, False, 0)
    ridge, solve, has_error_bars, size = ranks.first(lambda: known)
    basis = torch.zeros(queries.shape[1], size, dtype=torch.float64) if scorer is None else scorer.basis
    weights = torch.zeros(size, dtype=torch.float64) if scorer is None else scorer.weights
    ranks.add_up(basis, weights)
    return Scorer(ridge, solve, basis, weights, queries, has_error_bars)


def in_blocks(store: Store, num_queries: int) -> Store:
    """Return the store in chunks so small that their scores for so many queries take `BLOCK_BYTES`."""
    return store.in_chunks_of(max(1, BLOCK_BYTES // (8 * num_queries)))


def stream(
    scorer: Scorer, store: Store, first: int = 0, ranks: Ranks = ALONE, squares: Tensor | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first row, (k, b) scores, (k, b) standard errors) over the chunks of a store from row `first` on.

    Of several ranks, each has its part of the chunks.

    Args:
        scorer: the queries.
        store: `in_blocks` for them.
        first: row of the first chunk.
        ranks: who shares the work.
        squares: (n,) `Scorer.squares` of the rows where they are known, 0 elsewhere: those are filled in.
    """
    with progress_bar("scores", store.rows_dealt(ranks.rank, ranks.size), "row") as progress:
        for start, rows in store.chunks(ranks.rank, ranks.size):
            if start >= first:
                yield start, *scorer.scores(rows, _known(squares, scorer, start, rows))
            progress.update(len(rows))


def _known(squares: Tensor | None, scorer: Scorer, start: int, rows: Tensor) -> Tensor | None:
    if squares is None or not scorer.has_error_bars:
        return None
    part = squares[start : start + len(rows)]
    if not part.any():
        part.copy_(scorer.squares(rows))
    return part
