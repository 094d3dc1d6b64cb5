from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=g)
    x[:, 4] = 0
    x[:, 5] = x[:, 0]
    y = (x[:, 0] > 0).long()
    return Workload(
        "singular",
        lambda: nn.Linear(6, 2),
        Examples(x.repeat(3, 1), y.repeat(3)),
        Examples(x, y),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
