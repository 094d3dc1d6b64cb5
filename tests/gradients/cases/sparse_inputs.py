from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(120, 30, generator=g) < 0.1).float()
    y = x[:, :10].sum(1).gt(1).long()
    return Workload(
        "sparsein",
        lambda: nn.Linear(30, 3),
        Examples(x[:80].to_sparse(), y[:80]),
        Examples(x[80:].to_sparse(), y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
