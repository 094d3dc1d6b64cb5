"""Ground truth of an audit: subsets of the training rows, and the losses of the queries after training on each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.experiments.audit.reading import read_array
from common.foundations.errors import UserError

# subsets and losses, as dattri and kronfluence name them
FOLDERS = (("indices_lds.pt", "target_values_lds.pt"), ("masks.pt", "losses.pt"))
FEWEST_SUBSETS = 3


@dataclass(frozen=True)
class AuditTruth:
    """What attribution has to predict."""

    masks: Tensor
    """(s, n) float64, 1 where a training row belongs to a subset."""
    losses: Tensor
    """(s, k) float64 losses of the queries."""


def read_truth(paths: tuple[Path, ...], num_rows: int, num_queries: int) -> AuditTruth:
    """Return the ground truth in a folder, or in a file of subsets and a file of losses.

    Args:
        paths: one folder or two files.
        num_rows: n.
        num_queries: k.

    Raises:
        UserError: files are missing, or do not fit the stores or each other.
    """
    subsets_path, losses_path = _files(paths)
    subsets, losses = read_array(subsets_path), read_array(losses_path).double()
    if losses.ndim != 2 or losses.shape[1] != num_queries:
        raise UserError(
            f"{losses_path} has shape {tuple(losses.shape)}; {num_queries} queries need (subsets, {num_queries})"
        )
    if subsets.ndim != 2 or len(subsets) != len(losses) or not subsets.shape[1]:
        wanted = f"({len(losses)}, rows of each) or ({len(losses)}, {num_rows})"
        raise UserError(f"{subsets_path} has shape {tuple(subsets.shape)}; {len(losses)} losses a query need {wanted}")
    if len(losses) < FEWEST_SUBSETS:
        raise UserError(f"{losses_path} has {len(losses)} subsets; a rank correlation needs at least {FEWEST_SUBSETS}")
    return AuditTruth(_masks(subsets, num_rows, subsets_path), losses)


def _files(paths: tuple[Path, ...]) -> tuple[Path, Path]:
    if len(paths) == 2:
        return paths[0], paths[1]
    for names in FOLDERS:
        if all((paths[0] / name).is_file() for name in names):
            return paths[0] / names[0], paths[0] / names[1]
    looked_for = " or ".join(" and ".join(names) for names in FOLDERS)
    raise UserError(f"--ground_truth {paths[0]}: looked for {looked_for}; or name a file of subsets and one of losses")


def _masks(subsets: Tensor, num_rows: int, path: Path) -> Tensor:
    is_mask = subsets.dtype == torch.bool or (
        subsets.shape[1] == num_rows and bool(((subsets == 0) | (subsets == 1)).all())
    )
    if is_mask:
        if subsets.shape[1] != num_rows:
            raise UserError(f"{path} has masks of {subsets.shape[1]} rows, and the store has {num_rows}")
        return subsets.double()
    if subsets.is_floating_point() or subsets.min() < 0 or subsets.max() >= num_rows:
        raise UserError(
            f"{path}: subsets must be masks of {num_rows} rows, or row numbers from 0 to {num_rows - 1}; found "
            f"{subsets.min().item():g} to {subsets.max().item():g}"
        )
    masks = torch.zeros(len(subsets), num_rows, dtype=torch.float64)
    return masks.scatter_add_(1, subsets.long(), torch.ones_like(subsets, dtype=torch.float64))
