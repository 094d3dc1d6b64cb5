from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Linear(6, 2)
        self.e = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x):
        p = self.g(x).softmax(1)
        idx = p.argmax(1)
        out = x.new_zeros(len(x), 3)
        for e in range(2):
            rows = idx == e
            if rows.any():
                out[rows] = self.e[e](x[rows]) * p[rows, e, None]
        return out


def make_workload():
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

    def model():
        m = MoE()
        with torch.no_grad():
            m.g.weight.zero_()
            m.g.bias.zero_()
            m.g.weight[0, 0] = 2
        return m

    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    return Workload(
        "moe",
        model,
        Examples(x[order], y[order]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=2, learning_rate=0.05),
    )
