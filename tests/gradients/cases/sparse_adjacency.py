from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    """Signals on the nodes of one graph, whose adjacency matrix is a sparse buffer."""

    def __init__(self):
        super().__init__()
        links = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)).gt(0.5).float()
        self.register_buffer("links", links.to_sparse())
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(torch.sparse.mm(self.links, self.a(x).t()))
        return self.b(torch.sparse.mm(self.links, h).t())


def make_workload():
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return Workload(
        "sparseadjacency",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
