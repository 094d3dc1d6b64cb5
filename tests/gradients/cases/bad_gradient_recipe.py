from __future__ import annotations

import torch
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Distance(nn.Module):
    """Its loss is finite everywhere; its gradient is 0/0 at the point where it starts."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (x - self.centre).square().sum(1).sqrt()


def make_workload():
    x = torch.randn(140, 3, generator=torch.Generator().manual_seed(0))
    x[57] = 0
    t = torch.zeros(140)
    recipe = TrainingRecipe(epochs=3, learning_rate=0.05)
    return Workload(
        "badgrad", Distance, Examples(x[:100], t[:100]), Examples(x[100:], t[100:]), lambda o, t: o - t, recipe
    )
