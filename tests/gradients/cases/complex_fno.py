from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 4, 3, dtype=torch.cfloat) * 0.3)
        self.f = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.fft.rfft(x)[..., :3]
        return self.f(torch.tanh(torch.fft.irfft(torch.einsum("bix,iox->box", h, self.w), n=8)).mean(2))


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 2, 8, generator=g)
    y = torch.randint(0, 3, (120,), generator=g)
    return Workload(
        "fno",
        Net,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
