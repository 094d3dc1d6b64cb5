from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.gradients.hidden_uses import HOOKED, UNSEEN, hidden_uses
from common.gradients.layer_calls import CallRecorder
from common.gradients.layer_capture import Routes
from common.gradients.routes import check_routes
from common.gradients.sample_level import SingleSample
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from common.workloads.running import trainable_parameters


class Net(nn.Module):
    def __init__(self, weight_of=lambda layer: layer.weight):
        super().__init__()
        self.first, self.out, self.weight_of = nn.Linear(5, 4), nn.Linear(4, 3), weight_of

    def forward(self, x):
        return self.out(torch.tanh(F.linear(x, self.weight_of(self.first), self.first.bias)))


def unseen(layer):
    with torch._C.DisableTorchFunction():
        return layer.weight * 2


def seen(layer):
    return layer.weight * 2


def examples():
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(20, 5, generator=generator), torch.randint(0, 3, (20,), generator=generator))


def hidden(model, wanted=None):
    """Return the hidden uses of a forward pass on one sample."""
    parameters, one = trainable_parameters(model), examples().subset([0])
    with CallRecorder(parameters, {}, wanted or list(parameters), SingleSample()) as recorder:
        total = cross_entropy(model(one.inputs), one.targets).sum()
    return hidden_uses(total, parameters, recorder.calls, wanted or list(parameters))


@pytest.mark.parametrize(("weight_of", "found"), [(seen, {}), (unseen, {"first.weight": UNSEEN})])
def test_a_use_is_hidden_where_it_is_in_the_graph_and_in_no_call(weight_of, found):
    assert hidden(Net(weight_of)) == found


def test_only_wanted_parameters_are_looked_for():
    assert hidden(Net(unseen), ["out.weight", "first.bias"]) == {}
    assert hidden(Net(unseen), ["first.weight"]) == {"first.weight": UNSEEN}


def test_a_parameter_with_a_hook_has_the_gradient_that_the_hook_makes():
    model = Net().eval()
    model.first.weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    assert hidden(model) == {"first.weight": HOOKED}
    assert check_routes(model, cross_entropy, examples()).routes == Routes(one_at_a_time={"first.weight": HOOKED})
