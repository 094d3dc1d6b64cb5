from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (120, 5), generator=g)
    y = torch.randint(0, 3, (120,), generator=g)
    y[57] = 3
    return Workload(
        "late",
        lambda: nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 3)),
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
