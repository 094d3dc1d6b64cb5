from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(3, 8)
        self.t = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.f = nn.Linear(8, 3)

    def forward(self, x):
        return self.f(self.t(self.i(x)).mean(1))


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, 3, generator=g)
    y = torch.randint(0, 3, (len(x),), generator=g)
    return Workload(
        "tenc",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
