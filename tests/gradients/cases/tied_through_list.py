from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(20, 8)
        self.a = nn.Linear(8, 8)
        self.tied = [self.e.weight]

    def forward(self, x):
        return torch.tanh(self.a(self.e(x).mean(1))) @ self.tied[0].t()


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (120, 5), generator=g)
    y = torch.randint(0, 3, (len(x),), generator=g)
    return Workload(
        "tiedlist",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
