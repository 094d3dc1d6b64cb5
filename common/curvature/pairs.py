"""Scores of every training sample with every query: the matrix that attribution libraries return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.curvature import coordinates
from common.curvature.coordinates import BlockCoordinates
from common.curvature.factors import Batches


def pairwise(
    parts: Sequence[BlockCoordinates], curvature: str, train: Batches, num_train: int, ridges: Sequence[float]
) -> Tensor:
    """Return B_λ of every training sample and query, (num_train, k) float64, from one pass over the training samples.

        B(g_i, q) = Σ_l Σ_ij C_ij(g_i) C_ij(q) / (s_ij + λ_l)

    Args:
        parts: all blocks, with the coordinates of the queries in the units they are wanted in.
        curvature: KFAC or EKFAC.
        train: factors of the training samples.
        num_train: how many.
        ridges: λ_l of every block.
    """
    solved = {}
    for part, ridge in zip(parts, ridges, strict=True):
        weighted = part.queries.double().div_(part.eigenvalues[curvature] + ridge)
        solved[part.factored.block.name] = weighted.flatten(1)
    wanted = {part.factored.block.name: part.factored for part in parts}
    some = next(iter(solved.values()))
    scores = torch.zeros(num_train, len(some), dtype=torch.float64, device=some.device)
    for rows, name, found in coordinates.of_batches(wanted, train):
        scores[rows].addmm_(found.flatten(1), solved[name].T)
    return scores
