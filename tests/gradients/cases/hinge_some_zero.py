from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, Workload


def make_workload():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(140, 10, generator=g)
    y = torch.where(x[:, 0] > 0, 1.0, -1.0)
    x[:, 0] += y * 2
    x[:5, 0] = 0.3 * y[:5]

    def model():
        m = nn.Linear(10, 1)
        with torch.no_grad():
            m.weight.zero_()
            m.bias.zero_()
            m.weight[0, 0] = 1
        return m

    return Workload(
        "hinge",
        model,
        Examples(x[:100], y[:100]),
        Examples(x[100:], y[100:]),
        lambda o, t: F.relu(1 - t * o[:, 0]),
        None,
    )
