from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    """Classifies by the derivative of an energy, which torch.func takes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 1, bias=False)
        self.c = nn.Linear(6, 3)

    def energy(self, x):
        return self.b(torch.tanh(self.a(x))).sum()

    def forward(self, x):
        return self.c(torch.func.vmap(torch.func.grad(self.energy))(x))


def make_workload():
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return Workload(
        "owntransform",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
