from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8) * 0.3)
        self.b, self.c = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x, self.w, self.b)), self.w.t(), self.c)


def make_workload():
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    return Workload(
        "tiedae",
        AE,
        Examples(x[:80], x[:80]),
        Examples(x[80:], x[80:]),
        lambda o, t: (o - t).square().sum(1),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
