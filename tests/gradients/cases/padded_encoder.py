from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Enc(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(20, 8, padding_idx=0)
        self.t = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.f = nn.Linear(8, 3)

    def forward(self, x):
        pad = x == 0
        h = self.t(self.e(x), src_key_padding_mask=pad)
        keep = (~pad).float()[..., None]
        return self.f((h * keep).sum(1) / keep.sum(1))


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 20, (120, 10), generator=g)
    y = x[:, 0] % 3
    length = torch.randint(2, 11, (120,), generator=g)
    x[torch.arange(10) >= length[:, None]] = 0
    return Workload(
        "padded",
        Enc,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        TrainingRecipe(epochs=3, learning_rate=0.05),
    )
