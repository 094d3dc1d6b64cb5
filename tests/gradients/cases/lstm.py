from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(30, 8)
        self.r = nn.LSTM(8, 8, batch_first=True)
        self.f = nn.Linear(8, 3)

    def forward(self, x):
        out, _ = self.r(self.e(x))
        return self.f(out[:, -1])


def make_workload():
    x = torch.randint(0, 30, (120, 6), generator=torch.Generator().manual_seed(0))
    y = x[:, 0] % 3
    return Workload(
        "lstm",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
