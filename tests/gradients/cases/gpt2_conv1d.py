from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, TrainingRecipe, Workload


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + (self.nf,))


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.p, self.f, self.q = Conv1D(3 * d, d), Conv1D(d, d), Conv1D(4 * d, d), Conv1D(d, 4 * d)
        self.l1, self.l2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (z.view(b, n, 2, d // 2).transpose(1, 2) for z in self.a(self.l1(x)).split(d, 2))
        x = x + self.p(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, d))
        return x + self.q(F.gelu(self.f(self.l2(x))))


class GPT(nn.Module):
    def __init__(self, d=8):
        super().__init__()
        self.wte, self.wpe, self.h, self.ln = nn.Embedding(40, d), nn.Embedding(12, d), Block(d), nn.LayerNorm(d)
        self.head = nn.Linear(d, 40, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x):
        return self.head(self.ln(self.h(self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device)))))


def loss(o, t):
    return F.cross_entropy(o[:, :-1].transpose(1, 2), t[:, 1:], reduction="none").mean(1)


def make_workload():
    x = torch.randint(0, 40, (120, 12), generator=torch.Generator().manual_seed(0))
    return Workload(
        "gpt2conv1d",
        GPT,
        Examples(x[:80], x[:80]),
        Examples(x[80:], x[80:]),
        loss,
        TrainingRecipe(epochs=2, learning_rate=0.05),
    )
