"""Slow, obvious float64 references of Kronecker-factored curvature: matrices of the size of whole blocks."""

from __future__ import annotations

import torch

from common.curvature.blocks import Block
from common.curvature.factors import FactoredBlock, Side
from common.gradients.layer_factors import FlatParameter


def positive(size: int, rank: int, seed: int) -> torch.Tensor:
    """Return a (size, size) matrix of this rank whose eigenvalues spread over decades."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return (root * torch.logspace(0, -3, rank, dtype=torch.float64)) @ root.T


def side(matrix: torch.Tensor) -> Side:
    eigenvalues, basis = torch.linalg.eigh(matrix)
    return Side(eigenvalues.clamp(min=0), basis)


def factored_block(a: torch.Tensor, e: torch.Tensor) -> FactoredBlock:
    """Return a block with these factors."""
    return FactoredBlock(Block(FlatParameter("w", 0, len(e), len(a)), "layer"), side(a), side(e), 1.0)


def dense_curvature(a: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Return the curvature of gradients flattened row by row: (rows, cols) entries (i, j) go with E_ii' A_jj'."""
    return torch.kron(e, a)


def bilinear(matrix: torch.Tensor, left: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return leftᵀ (M + λI)⁻¹ right of (v, ...) and (k, ...) vectors."""
    solved = torch.linalg.solve(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype), right.flatten(1).T)
    return left.flatten(1) @ solved
