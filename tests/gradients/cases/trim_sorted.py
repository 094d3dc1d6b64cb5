from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(30, 16, padding_idx=0)
        self.h = nn.Linear(16, 16)
        self.f = nn.Linear(16, 3)

    def forward(self, x):
        x = x[:, : int((x != 0).sum(1).max())]
        h = torch.tanh(self.h(self.e(x)))
        keep = (x != 0).float()[..., None]
        return self.f((h * keep).sum(1) / keep.sum(1))


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 30, (104, 4), generator=g)
    y = x[:, 0] % 3
    length = torch.tensor([2, 4, 3]).repeat_interleave(torch.tensor([32, 32, 40]))
    x[torch.arange(4) >= length[:, None]] = 0
    return Workload(
        "trim",
        Net,
        Examples(x[:64], y[:64]),
        Examples(x[64:], y[64:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
