"""What a store of projected gradients and its audit take, by formula: operations and bytes of each rank, and sent.

A multiplication and an addition are two operations. Formulas are for n samples shared equally by R ranks, d parameters,
M numbers a row and k queries; docs/scale.md has them with their tables, tests compare them with what is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.gradients.gram import PANEL_ROWS

DENSE = ("normal", "rademacher")
# of the reduction to tridiagonal form 4/3, of the eigenvectors by divide and conquer at most 4/3, of their way back 2
EIGENDECOMPOSITION = 14 / 3
FLOAT32, FLOAT64 = 4, 8


@dataclass(frozen=True)
class Job:
    """A store, and the questions put to it."""

    num_samples: int
    """n, training samples."""
    num_parameters: int
    """d."""
    size: int
    """M, numbers a row."""
    kind: str = "sjlt"
    """Law of P: sjlt, normal or rademacher."""
    sparsity: int = 1
    """Entries of an SJLT in each column."""
    num_ranks: int = 1
    """R, processes that share the samples."""
    num_queries: int = 500
    """k."""
    itemsize: int = FLOAT32
    """Bytes of a stored number."""
    positions: int = 1
    """Tokens or pixels of a sample at which its gradient is a sum."""
    rows_at_once: int = 1024
    """Samples for which a dense P is drawn together."""


@dataclass(frozen=True)
class Cost:
    """What one step takes of one rank."""

    operations: float
    """Floating point operations; float32 while projecting, float64 afterwards."""
    memory: float
    """Bytes beside the model and the activations of a batch."""
    read: float
    """Bytes read from disk."""
    written: float
    """Bytes written to disk."""
    wire: float
    """Bytes sent to other ranks."""


def project(job: Job) -> Cost:
    """Return the cost of projecting a rank's share of the samples.

    Gradients: at most 6 d T operations a sample with T positions, 2 for the outputs, 4 for errors and gradients. P:
    2 d M for a dense one, 2 c d for an SJLT with c entries a column. Nothing is sent.
    """
    share = math.ceil(job.num_samples / job.num_ranks)
    d, dense = job.num_parameters, job.kind in DENSE
    multiplied = 2 * d * job.size if dense else 2 * job.sparsity * d
    # a group of gradients and its projections; an SJLT keeps row, sign and start of every entry besides
    group = min(share, job.rows_at_once if dense else 32)
    entries = 2**26 if dense else 16 * job.sparsity * d
    memory = FLOAT32 * group * (d + job.size) + entries
    written = share * (job.size * job.itemsize + FLOAT64)
    return Cost(share * (6 * d * job.positions + multiplied), memory, 0, written, 0)


def drawn_numbers(job: Job) -> float:
    """Return the random numbers that a rank draws for P: a dense one anew for every group of samples."""
    if job.kind not in DENSE:
        return job.sparsity * job.num_parameters
    groups = math.ceil(job.num_samples / job.num_ranks / job.rows_at_once)
    return groups * job.num_parameters * job.size


def second_moment(job: Job) -> Cost:
    """Return the cost of S = ZᵀZ/n: one pass over a rank's rows, and the sum over ranks.

    Only panels of 256 rows up to the diagonal are multiplied: n M (M + 256) operations. The sum sends what a ring of R
    ranks sends, 2 (R − 1)/R times the 8 M² bytes.
    """
    share, size = math.ceil(job.num_samples / job.num_ranks), job.size
    operations = share * size * (size + min(size, PANEL_ROWS))
    wire = 2 * (job.num_ranks - 1) / job.num_ranks * FLOAT64 * size**2
    return Cost(operations, FLOAT64 * size**2, share * (size * job.itemsize + FLOAT64), 0, wire)


def eigendecomposition(job: Job) -> Cost:
    """Return the cost of the eigenvalues and eigenvectors of S, which every rank computes for itself."""
    return Cost(EIGENDECOMPOSITION * job.size**3, 3 * FLOAT64 * job.size**2, 0, 0, 0)


def scores(job: Job, chunk: int, kept: int = 0) -> Cost:
    """Return the cost of all n k scores with their standard errors, `chunk` rows at a time.

    2 M² operations a row for (S + κI)⁻¹g, 4 M for each of its scores, and 6 k M² for the queries. A rank sends the
    `kept` best rows of each query with score and standard error, and writes nothing.
    """
    share, size, k = math.ceil(job.num_samples / job.num_ranks), job.size, job.num_queries
    operations = share * (2 * size**2 + 4 * k * size) + 6 * k * size**2
    memory = FLOAT64 * (size**2 + 2 * chunk * size + 3 * k * size + 2 * k * chunk)
    wire = 3 * FLOAT64 * k * kept if job.num_ranks > 1 else 0
    return Cost(operations, memory, share * (size * job.itemsize + FLOAT64), 0, wire)
