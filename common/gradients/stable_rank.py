"""How many directions a sample's gradient has, seen as the matrices of its layers."""

from __future__ import annotations

import torch
from torch import Tensor

from common.gradients.layer_factors import LayerFactors
from common.workloads.records import Examples


def mean_stable_rank(factors: LayerFactors, examples: Examples) -> float | None:
    """Return the mean over samples of ‖G‖²_F / ‖G‖²_2, over the matrices G of a gradient weighted by their energy.

    It is 1 for a sum with one position, e xᵀ, and at most the number of positions. None for no matrix or no energy.

    Args:
        factors: gradients of the model.
        examples: B samples on the model's device; their gradients are multiplied out, parameter by parameter.
    """
    energies, ranks = [], []
    for share in factors(examples):
        if share.parameter.is_matrix:
            gradients = share.dense().double()
            energy = gradients.square().sum((1, 2))
            energies.append(energy)
            ranks.append(_stable_ranks(gradients, energy))
    if not energies:
        return None
    weights, values = torch.stack(energies), torch.stack(ranks)
    total = weights.sum(0)
    by_sample = ((weights * values).sum(0) / total)[total > 0]
    return by_sample.mean().item() if len(by_sample) else None


def _stable_ranks(gradients: Tensor, energy: Tensor) -> Tensor:
    """Return (B,) ‖G‖²_F/‖G‖²_2 of (B, rows, cols) matrices, 0 for zero ones."""
    narrow = gradients if gradients.shape[1] <= gradients.shape[2] else gradients.mT
    scaled = narrow / energy.sqrt().clamp(min=torch.finfo(torch.float64).tiny)[:, None, None]
    largest = torch.linalg.eigvalsh(scaled @ scaled.mT)[:, -1]
    return torch.where(energy > 0, 1 / largest, 0)
