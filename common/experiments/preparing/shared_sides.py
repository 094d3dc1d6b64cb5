"""How much of what sketches do happens between entries of one row or column of a parameter: for TensorSketch's law."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.foundations.seeds import make_generator
from common.gradients.kept_rows import Gradients
from common.gradients.layer_factors import FlatParameter
from common.sketches.basis import Basis
from common.theory.shared_sides import SharedSides

NUM_QUERIES, NUM_DRAWS, NUM_RIDGES = 8, 8, 6
DRAW_STREAM = 1_000_051


class SidesReader:
    """Reads the shares of pairs from blocks of columns, at six ridges that span the eigenvalues of F.

    Those of residuals are exact for the first eight queries. Leverages are seen through eight random vectors, whose
    squared entries have them as their mean; the shares multiply those of independent halves.
    """

    def __init__(
        self,
        gradients: Gradients,
        basis: Basis,
        query_rows: Tensor,
        queries: Tensor,
        parameters: Sequence[FlatParameter],
        length: int,
        seed: int,
    ):
        """Find the weights of the unit rows whose products are looked at.

        Args:
            gradients: all rows.
            basis: of these.
            query_rows: (k,) int64 rows that are queries.
            queries: (k, r) coordinates of the unit queries.
            parameters: where the columns stand.
            length: L of the TensorSketch.
            seed: of the random vectors.
        """
        s = basis.eigenvalues
        positive = s[s > 0]
        smallest, largest = positive[[-1, 0]].log10().tolist()
        self._ridges = torch.logspace(smallest, largest, NUM_RIDGES, dtype=torch.float64)
        chosen, rows = queries[:NUM_QUERIES], query_rows[:NUM_QUERIES]
        generator = make_generator("cpu", seed, DRAW_STREAM)
        draws = torch.randn(NUM_DRAWS, len(s), generator=generator, dtype=torch.float64).to(s.device)
        shrunk = [s / (s + ridge) for ridge in self._ridges.to(s.device)]
        inside = torch.cat([v for share in shrunk for v in (chosen * share, draws * share.sqrt())])
        weights = basis.range_weights(inside, lambda: gradients).view(NUM_RIDGES, -1, gradients.num_rows)
        weights[:, : len(chosen)] *= -1
        weights[:, torch.arange(len(chosen)), rows.to(weights.device)] += 1
        self._weights, self._count, self._length = weights.flatten(0, 1), len(chosen), length
        left = torch.arange(NUM_RIDGES * (self._count + 2)).view(NUM_RIDGES, -1)
        right = torch.cat([left[:, : self._count], left[:, self._count :].flip(1)], dim=1)
        self._sums = _Marginals(parameters, length, left.flatten(), right.flatten(), weights.device)

    def add(self, start: int, block: Tensor) -> None:
        """Read (N, b) columns of all unit rows, from column `start` on."""
        squares = (self._weights @ block.double()).square().view(NUM_RIDGES, -1, block.shape[1])
        halves = squares[:, self._count :].unflatten(1, (2, -1)).mean(2)
        self._sums.add(start, torch.cat([squares[:, : self._count], halves], dim=1).flatten(0, 1))

    def finish(self) -> SharedSides:
        """Return the shares, after all columns."""
        shares = self._sums.shares().view(NUM_RIDGES, -1).cpu()
        of_residuals = shares[:, : self._count].nanmean(1)
        return SharedSides(self._length, self._ridges.cpu(), shares[:, self._count], of_residuals)


def kept_apart(size: int, length: int) -> float:
    """Return the share of pairs of `size` entries with balanced buckets that meet less often than in 1/L of cases.

    1 where every entry has a bucket of its own; else two share one with probability (size/L − 1)/(size − 1), and what
    that lacks to 1/L is (L − 1)/(size − 1) of 1/L.
    """
    return 1.0 if size <= length else (length - 1) / (size - 1)


class _Marginals:
    """Sums of (v, d) squared entries over rows and over columns of every parameter; vectors come in pairs."""

    def __init__(
        self, parameters: Sequence[FlatParameter], length: int, left: Tensor, right: Tensor, device: torch.device
    ):
        self._parameters, self._left, self._right = parameters, left.to(device), right.to(device)
        self._length = length

        def zeros(size: int) -> Tensor:
            return torch.zeros(len(left), size, dtype=torch.float64, device=device)

        self._sides = {p.name: (zeros(p.rows), zeros(p.cols)) for p in parameters if p.is_matrix}
        self._vectors, self._total = zeros(1), zeros(1)
        self._same = {p.name: zeros(1) for p in parameters}

    def add(self, start: int, squares: Tensor) -> None:
        """Add (v, b) columns from `start` on."""
        self._total += squares.sum(1, keepdim=True)
        for p in self._parameters:
            here = p.overlap(start, start + squares.shape[1])
            if here is None:
                continue
            part = squares[:, here]
            self._same[p.name] += (part[self._left] * part[self._right]).sum(1, keepdim=True)
            if not p.is_matrix:
                self._vectors += part.sum(1, keepdim=True)
                continue
            places = torch.arange(here.start, here.stop, device=squares.device) + (start - p.start)
            by_rows, by_cols = self._sides[p.name]
            by_rows.index_add_(1, places // p.cols, part)
            by_cols.index_add_(1, places % p.cols, part)

    def shares(self) -> Tensor:
        """Return Σ x_c x'_c' over entries that share a side, over Σ x_c Σ x'_c', for the pairs of vectors x, x'.

        Different entries count by how far their buckets keep them apart, an entry paired with itself once.
        """
        same = sum(self._same.values(), start=torch.zeros_like(self._total[self._left])).squeeze(1)
        shared, in_vectors = same.clone(), torch.zeros_like(same)
        num_vectors = 0
        for p in self._parameters:
            own = self._same[p.name].squeeze(1)
            if not p.is_matrix:
                num_vectors, in_vectors = num_vectors + p.rows * p.cols, in_vectors + own
                continue
            by_rows, by_cols = self._sides[p.name]
            # entries of one row differ in the column
            shared += kept_apart(p.cols, self._length) * (self._paired(by_rows) - own)
            shared += kept_apart(p.rows, self._length) * (self._paired(by_cols) - own)
        shared += kept_apart(num_vectors, self._length) * (self._paired(self._vectors) - in_vectors)
        return shared / self._paired(self._total)

    def _paired(self, sums: Tensor) -> Tensor:
        return (sums[self._left] * sums[self._right]).sum(1)
