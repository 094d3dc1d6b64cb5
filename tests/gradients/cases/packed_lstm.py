from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, Workload


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.r, self.f = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        lengths = (x != 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(self.e(x), lengths, batch_first=True, enforce_sorted=False)
        return self.f(self.r(packed)[1][0][0])


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 20, (60, 7), generator=g)
    x[torch.arange(7) >= torch.randint(2, 8, (60, 1), generator=g)] = 0
    y = torch.randint(0, 3, (60,), generator=g)
    loss = lambda o, t: F.cross_entropy(o, t, reduction="none")  # noqa: E731
    return Workload("packed", Packed, Examples(x[:40], y[:40]), Examples(x[40:], y[40:]), loss, None)
