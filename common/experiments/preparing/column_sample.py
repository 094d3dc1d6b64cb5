"""How the gradients' energy is spread over parameters: the leverage of a random sample of columns.

Influence scores depend on the gradients through inner products alone, but sparse sketches do not: they put whole
columns (parameters) into buckets. What their law needs beyond eigenvalues is how unevenly columns share the work.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.experiments.preparing.shared_sides import SidesReader
from common.foundations.seeds import make_generator
from common.gradients.kept_rows import Gradients
from common.sketches.basis import Basis
from common.theory.column_sample import ColumnSample, group

NUM_SAMPLED = 1024
SAMPLE_STREAM = 1_000_037


def sample_columns(
    gradients: Gradients, basis: Basis, queries: Tensor, seed: int, sides: SidesReader | None = None
) -> ColumnSample:
    """Return up to 1,024 columns, drawn without replacement and read in one pass over the gradients.

    `queries` are the (k, r) coordinates of the unit queries in the basis. For a TensorSketch `sides` reads in the same
    pass which pairs of columns are kept apart.
    """
    d = gradients.num_columns
    order = torch.randperm(d, generator=make_generator("cpu", seed, SAMPLE_STREAM))
    chosen = order[:NUM_SAMPLED].sort().values
    if sides is None:
        columns = torch.cat([rows[:, chosen.to(rows.device)].double() for _, rows in gradients.unit_batches()])
    else:
        columns = _read_with(sides, gradients, chosen)
    energies = basis.entries(columns, chosen).square()
    # closed forms are computed on the CPU
    query_squares = queries.square().mean(0)
    sample = group(d, basis.eigenvalues.cpu(), energies.cpu(), query_squares.cpu())
    return sample if sides is None else replace(sample, sides=sides.finish())


def _read_with(sides: SidesReader, gradients: Gradients, chosen: Tensor) -> Tensor:
    parts = []
    for start, block in gradients.unit_blocks():
        inside = chosen[(chosen >= start) & (chosen < start + block.shape[1])] - start
        parts.append(block[:, inside.to(block.device)].double())
        sides.add(start, block)
    return torch.cat(parts, dim=1)
