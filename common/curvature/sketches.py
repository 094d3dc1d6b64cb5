"""Self-influence under random projections of a block with curvature A ⊗ E, two kinds, both exact in law.

    decoupled  P = P_A ⊗ P_E, P_A (m_A, cols) and P_E (m_E, rows) with independent N(0, 1/m_A) and N(0, 1/m_E) entries:
               PFPᵀ = (P_A A P_Aᵀ) ⊗ (P_E E P_Eᵀ) and P vec G = vec P_E G P_Aᵀ, so that no matrix of m_A m_E rows exists
    joint      P (m, rows·cols) with independent N(0, 1/m) entries, for m = m_A m_E as many numbers as the decoupled one

Gaussian matrices are the same in law in every orthonormal basis, so coordinates in the eigenbases of A and E are
sketched in place of gradients. A side that is no larger than its m stays whole, and so does a block of the joint kind.
Sketches of different m in one trial share random numbers; different trials and blocks are independent.

Reference: Hu, Hu, Ma, Zhao, arXiv 2602.10449, theorem 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.curvature.factors import FactoredBlock
from common.foundations.seeds import make_generator
from common.gradients.gram import add_gram
from common.sketches.influence import SketchedProblem, sketched_self_influence

JOINT_COST = 2e11
"""Largest m² d_l for which a joint sketch is drawn: beyond, it takes minutes where a decoupled one takes a moment."""
TILE_BYTES = 64 << 20
_A, _E, _JOINT = 1, 2, 3


@dataclass(frozen=True)
class _SketchedSide:
    """One side P S Pᵀ in its own eigenbasis."""

    eigenvalues: Tensor
    """(m,) of P S Pᵀ; those of S where the side stays whole."""
    turn: Tensor | None
    """(p, m) from coordinates in the eigenbasis of S to those of P S Pᵀ; None where the side stays whole."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the sketched (..., m) coordinates of (..., p) ones."""
        return vectors if self.turn is None else vectors @ self.turn


def decoupled(
    factored: FactoredBlock,
    queries: Tensor,
    sizes: Sequence[tuple[int, int]],
    ridges: Tensor,
    entropy: tuple[int, ...],
) -> dict[tuple[int, int], Tensor]:
    """Return φ̃_λ of all queries, (ridges, k) float64, for every (m_A, m_E).

    Args:
        factored: the block.
        queries: (k, rows, cols) coordinates.
        sizes: the (m_A, m_E).
        ridges: (ridges,) float64 λ_l.
        entropy: what the random numbers depend on: seed, trial, number of the block.
    """
    of_a = _sketched_sides(factored.a.eigenvalues, {m_a for m_a, _ in sizes}, (*entropy, _A))
    of_e = _sketched_sides(factored.e.eigenvalues, {m_e for _, m_e in sizes}, (*entropy, _E))
    found = {size: ridges.new_zeros(len(ridges), len(queries)) for size in sizes}
    for some in _some_rows(queries):
        exact = queries[some].double()
        for m_a, side_a in of_a.items():
            half = side_a(exact).transpose(1, 2)
            for m_e, side_e in of_e.items():
                if (m_a, m_e) in found:
                    inverses = 1 / (torch.outer(side_a.eigenvalues, side_e.eigenvalues).flatten()[:, None] + ridges)
                    found[m_a, m_e][:, some] = (side_e(half).flatten(1).square() @ inverses).T
    return found


def joint(
    factored: FactoredBlock, queries: Tensor, ms: Sequence[int], ridges: Tensor, entropy: tuple[int, ...]
) -> dict[int, Tensor]:
    """Return φ̃_λ of all queries, (ridges, k) float64, for every m that `can_be_joint`; arguments as of `decoupled`.

    NaN where λ is below the rounding of PFPᵀ.
    """
    drawn = [m for m in ms if can_be_joint(factored, m)]
    if not drawn:
        return {}
    largest, eigenvalues, vectors = max(drawn), factored.eigenvalues.flatten(), queries.flatten(1)
    fisher = ridges.new_zeros(largest, largest)
    projected = ridges.new_zeros(len(vectors), largest)
    width = max(1, TILE_BYTES // (8 * max(largest, len(vectors))))
    for tile, start in enumerate(range(0, len(eigenvalues), width)):
        part = slice(start, start + width)
        entries = _gaussian(largest, len(eigenvalues[part]), ridges.device, (*entropy, _JOINT, tile))
        add_gram(fisher, entries * eigenvalues[part].sqrt())
        projected.addmm_(vectors[:, part].double(), entries.T)
    found = {}
    for m in drawn:
        problem = SketchedProblem(fisher[:m, :m] / m, projected[:, :m] / m**0.5)
        found[m] = torch.stack([sketched_self_influence(problem, ridge) for ridge in ridges.tolist()])
    return found


def can_be_joint(factored: FactoredBlock, m: int) -> bool:
    """Whether a joint sketch of size m is smaller than the block, and cheap enough to be drawn."""
    return m < factored.block.size and m**2 * factored.block.size <= JOINT_COST


def kept_size(factored: FactoredBlock, m_a: int, m_e: int) -> int:
    """Return how many numbers a sketch of the block with (m_A, m_E) has: sides that are smaller stay whole."""
    return min(m_a, factored.block.cols) * min(m_e, factored.block.rows)


def _sketched_sides(eigenvalues: Tensor, ms: set[int], entropy: tuple[int, ...]) -> dict[int, _SketchedSide]:
    size = len(eigenvalues)
    drawn = sorted(m for m in ms if m < size)
    sides = {m: _SketchedSide(eigenvalues, None) for m in ms if m >= size}
    if drawn:
        entries = _gaussian(drawn[-1], size, eigenvalues.device, entropy)
        for m in drawn:
            rows = entries[:m] / m**0.5
            values, basis = torch.linalg.eigh((rows * eigenvalues) @ rows.T)
            sides[m] = _SketchedSide(values.clamp(min=0), rows.T @ basis)
    return dict(sorted(sides.items()))


def _gaussian(rows: int, cols: int, device: torch.device, entropy: tuple[int, ...]) -> Tensor:
    """Return independent float64 N(0, 1) entries, drawn on the CPU: the same on every device."""
    generator = make_generator("cpu", *entropy)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(device)


def _some_rows(queries: Tensor) -> Iterator[slice]:
    step = max(1, TILE_BYTES // (8 * queries[0].numel())) if len(queries) else 1
    return (slice(start, start + step) for start in range(0, len(queries), step))
