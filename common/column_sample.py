"""How the gradients' energy is spread over parameters: the leverage of a random sample of columns.

Influence scores depend on the gradients through inner products alone, but sparse sketches do not: they put whole
columns (parameters) into buckets. What their law needs beyond eigenvalues is how unevenly columns share the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.geometry import Geometry
from common.gradient_rows import Gradients
from common.projectors import make_generator

NUM_SAMPLED = 1024
SAMPLE_STREAM = 1_000_037
# Functions of s/μ vary slowly over a factor e^0.1: replacing s by a middle value changes their sums by about 1e-4.
LOG_WIDTH = 0.1


@dataclass(frozen=True)
class ColumnSample:
    """A uniform random sample of the d columns, seen from the eigenbasis v_1, v_2, ... of F; float64.

    Neighbouring eigenvalues may stand together as one of the B groups.
    """

    num_columns: int
    """d."""
    eigenvalues: Tensor
    """(B,) eigenvalue of each group."""
    energies: Tensor
    """(K, B) sums over each group of v_cj², the squared entries of the sampled columns c in its eigenvectors."""
    query_energies: Tensor
    """(K, B) sums over each group of v_cj² times the mean of q_j² over the unit queries q."""


def sample_columns(gradients: Gradients, geometry: Geometry, seed: int) -> ColumnSample:
    """Return up to 1,024 columns, drawn without replacement and read in one pass over the gradients."""
    d = gradients.num_columns
    order = torch.randperm(d, generator=make_generator("cpu", seed, SAMPLE_STREAM))
    chosen = order[:NUM_SAMPLED].sort().values
    parts = []
    for start, block in gradients.unit_blocks():
        inside = chosen[(chosen >= start) & (chosen < start + block.shape[1])] - start
        parts.append(block[:, inside.to(block.device)].double())
    energies = _basis(geometry, torch.cat(parts, dim=1)).square()
    # closed forms are computed on the CPU
    query_squares = geometry.queries.square().mean(0)
    return group(d, geometry.eigenvalues.cpu(), energies.cpu(), query_squares.cpu())


def group(num_columns: int, eigenvalues: Tensor, energies: Tensor, query_squares: Tensor) -> ColumnSample:
    """Return the sample with eigenvalues within a factor e^0.1 together, each group at its geometric mean.

    Args:
        num_columns: d.
        eigenvalues: (r,) >= 0.
        energies: (K, r) v_cj².
        query_squares: (r,) mean over the queries of q_j².
    """
    logs = eigenvalues.log()
    _, member = (logs / LOG_WIDTH).round().unique(return_inverse=True)
    sizes = member.bincount().double()

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(*values.shape[:-1], len(sizes)).index_add_(-1, member, values)

    return ColumnSample(num_columns, (sums(logs) / sizes).exp(), sums(energies), sums(energies * query_squares))


def _basis(geometry: Geometry, columns: Tensor) -> Tensor:
    """Return (K, r) entries of the eigenvectors in K columns, which solve rows @ basisᵀ = columns.

    On range(F), where (rows·norms)ᵀ(rows·norms)/n is the diagonal matrix of eigenvalues, by one product; in the
    directions that only queries have, from what that leaves of them.
    """
    n, rank, rows = geometry.num_train, geometry.rank, geometry.rows
    squares = geometry.norms[:n, None].square() / n
    inverse = torch.where(geometry.eigenvalues > 0, 1 / geometry.eigenvalues, 0)[:rank]
    inside = ((rows[:n, :rank] * squares).T @ columns[:n]) * inverse[:, None]
    if rank == rows.shape[1]:
        return inside.T
    left = columns[n:] - rows[n:, :rank] @ inside
    outside = torch.linalg.pinv(rows[n:, rank:]) @ left
    return torch.cat([inside, outside]).T
