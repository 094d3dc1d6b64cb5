from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.c2, self.n2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.GroupNorm(3, 6)
        self.f = nn.Linear(6, 3)

    def forward(self, x):
        h = F.relu(self.n(self.c(x)), inplace=True)
        h = h + F.relu(self.n2(self.c2(h)))
        return self.f(h.mean((2, 3)))


def make_workload():
    x = torch.randn(120, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :2].gt(0).sum(1)
    return Workload(
        "gn",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05, batch_size=32),
    )
