from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, Workload


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(20, 20).to(torch.float16).requires_grad_(False)
        self.a, self.b = nn.Linear(20, 4, bias=True), nn.Linear(4, 20, bias=True)

    def forward(self, x):
        y = self.base(x.to(self.base.weight.dtype))
        return y.to(x.dtype) + self.b(self.a(x.to(self.a.weight.dtype)))


def make_workload():
    x = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    y = x[:, 0].gt(0).long()
    return Workload(
        "lora2",
        LoRA,
        Examples(x[:80], y[:80]),
        Examples(x[80:], y[80:]),
        lambda o, t: F.cross_entropy(o[:, :3].float() if o.dtype == torch.float16 else o[:, :3], t, reduction="none"),
        None,
    )
