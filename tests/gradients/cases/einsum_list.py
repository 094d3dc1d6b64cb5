from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6) * 0.4)
        self.u = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.einsum("hld,md->hlm", [x.view(-1, 2, 6), self.w])
        return self.u(torch.tanh(h).reshape(len(x), 2, 4).sum(1))


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 2, 6, generator=g)
    y = torch.randint(0, 3, (len(x),), generator=g)
    return Workload(
        "einsum2",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
