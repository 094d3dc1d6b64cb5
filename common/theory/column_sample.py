"""How leverage is spread over parameters, seen in a random sample of columns: what the law of an SJLT needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.theory.shared_sides import SharedSides

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
    sides: SharedSides | None = None
    """For a TensorSketch: pairs of columns that it keeps apart."""


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
