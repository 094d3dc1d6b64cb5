"""What the laws of sketched scores need to know about F."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_dimension(eigenvalues: Tensor, ridge: float | Tensor) -> Tensor:
    """Return d_λ = tr F(F+λI)⁻¹ = Σ s/(s+λ) for one ridge or a tensor of ridges; 0/0 counts as 0."""
    ridge = torch.as_tensor(ridge, dtype=eigenvalues.dtype, device=eigenvalues.device)
    positive = eigenvalues[eigenvalues > 0]
    return (positive / (positive + ridge.unsqueeze(-1))).sum(-1)
