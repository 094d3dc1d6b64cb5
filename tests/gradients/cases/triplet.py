from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        e = self.b(torch.tanh(self.a(torch.cat(x.unbind(1)))))
        return torch.stack(e.chunk(x.shape[1]), 1)


def loss(o, t):
    return F.triplet_margin_loss(o[:, 0], o[:, 1], o[:, 2], margin=0.5, reduction="none")


def make_workload():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(120, 6, generator=g)
    p = a + 0.3 * torch.randn(120, 6, generator=g)
    n = torch.randn(120, 6, generator=g)
    n[:2], p[:2] = -3 * a[:2], a[:2] * 1.01
    x = torch.stack([a, p, n], 1)
    return Workload(
        "triplet",
        Net,
        Examples(x[:80], torch.zeros(80)),
        Examples(x[80:], torch.zeros(40)),
        loss,
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
