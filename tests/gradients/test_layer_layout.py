from __future__ import annotations

import pytest
import torch
from torch import nn

from common.foundations.errors import UserError
from common.gradients.layer_gradients import LayerwiseGradients
from common.gradients.layer_layout import unsupported_parameters
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.layer_cases import ChangesItsInput, FoldedSequence, classes


class ScaledInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x * self.scale)


class PositionEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.out = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(x + self.positions(torch.arange(5)))).mean(1)


class MixesSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.out(hidden - hidden.mean(0))


class TakeLast(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


UNSUPPORTED = {
    "elementwise_use": (ScaledInput, (4, 4), {"scale"}, "used by mul"),
    "no_sample_dimension": (PositionEmbedding, (4, 5, 4), {"positions.weight"}, "runs over samples"),
    "grouped_convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)),
        (4, 4, 4, 4),
        {"0.weight", "0.bias"},
        "used by conv2d",
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.GRU(4, 3, batch_first=True), TakeLast()),
        (4, 5, 4),
        {"0.weight_ih_l0", "0.weight_hh_l0", "0.bias_ih_l0", "0.bias_hh_l0"},
        "used by gru",
    ),
    "changes_its_input": (
        ChangesItsInput,
        (4, 4),
        {"first.weight", "first.bias", "out.weight", "out.bias"},
        "modified by an inplace operation|changed in place",
    ),
    "mixes_samples": (
        MixesSamples,
        (4, 4),
        {"first.weight", "out.weight"},
        "differs from a one-by-one backward pass",
    ),
    "tokens_folded_before_samples": (
        lambda: FoldedSequence(False),
        (4, 5, 4),
        {"hidden.weight", "norm.weight"},
        "differs from a one-by-one backward pass",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_with_its_reason(name):
    make_model, shape, names, reason = UNSUPPORTED[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make_model().eval()
        examples = Examples(torch.randn(shape), classes(shape[0], 3))
    assert names <= set(unsupported_parameters(model, cross_entropy, examples))
    with pytest.raises(UserError, match=reason):
        LayerwiseGradients(model, cross_entropy, examples)
