"""Small stores of sketched gradients whose F is known, and options to audit them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from common.experiments.audit import reading
from common.experiments.audit.options import AuditOptions
from common.experiments.audit.reading import Audited
from tests import reference_theory as reference
from tests.stores.cases import save_npy

NUM_TRAIN, NUM_QUERIES, DIMENSION, M = 200, 12, 300, 96
RIDGES = [0.3, 3.0, 30.0]


@dataclass(frozen=True)
class Gradients:
    """Unsketched rows in the eigenbasis of some F that is not quite theirs."""

    train: Tensor
    """(n, d)."""
    queries: Tensor
    """(k, d)."""

    @property
    def fisher(self) -> Tensor:
        """(d, d) F = GᵀG/n."""
        return self.train.T @ self.train / len(self.train)


def gradients(seed: int = 0) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    scale = (30 * reference.spectrum("power", DIMENSION)).sqrt()
    rows = torch.randn(NUM_TRAIN + NUM_QUERIES, DIMENSION, generator=generator, dtype=torch.float64) * scale
    return Gradients(rows[:NUM_TRAIN], rows[NUM_TRAIN:])


def write_stores(folder: Path, seed: int = 1, kind: str = "normal", dtype: torch.dtype = torch.float64) -> AuditOptions:
    """Write one sketch of the gradients, and return the options that audit it."""
    sketch = reference.sketch_matrix(kind, M, DIMENSION, torch.Generator().manual_seed(seed)).T
    known = gradients()
    train = save_npy(folder / "train.npy", (known.train @ sketch).to(dtype))
    queries = save_npy(folder / "queries.npy", (known.queries @ sketch).to(dtype))
    return options(train, queries)


def options(train: Path, queries: Path | None, **changes) -> AuditOptions:
    plain = AuditOptions(
        train=train, queries=queries, format=None, rows=None, module=None, norms=None, proj_type=None,
        lambda_exp_min=None, lambda_exp_max=None, ridge=None, target_eps=0.3, top_k=5, ground_truth=(), val_ratio=0.5,
        write_scores=None, num_test_grads=20, seed=1,
    )  # fmt: skip
    return replace(plain, **changes)


def audit(chosen: AuditOptions, subsets: Tensor | None = None) -> Audited:
    return reading.read(chosen, *reading.open_stores(chosen), subsets)
