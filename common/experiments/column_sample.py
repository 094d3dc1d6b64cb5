"""How the gradients' energy is spread over parameters: the leverage of a random sample of columns.

Influence scores depend on the gradients through inner products alone, but sparse sketches do not: they put whole
columns (parameters) into buckets. What their law needs beyond eigenvalues is how unevenly columns share the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.foundations.seeds import make_generator
from common.gradients.kept_rows import Gradients
from common.sketches.geometry import Geometry
from common.theory.column_sample import ColumnSample, group

NUM_SAMPLED = 1024
SAMPLE_STREAM = 1_000_037


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
