from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from common.workloads.running import trainable_parameters
from tests.gradient_cases import CPU, FLOAT32, rows_of
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import tiny_workload


class Shifted(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = [shift]  # a parameter of another module

    def forward(self, weight):
        return weight + self.shift[0]


class AdaptedForAWhile(nn.Module):
    """Adapts a frozen weight for the time of a forward pass, and does on the way what vmap does not allow."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(5, 3).requires_grad_(False)
        self.shift = nn.Parameter(torch.full((3, 5), 0.1))

    def forward(self, x):
        parametrize.register_parametrization(self.base, "weight", Shifted(self.shift))
        self.base.parametrizations.weight.original.requires_grad_()
        self.base.parametrizations.weight.original.requires_grad_(x.sum().item() > 1e9)
        try:
            return self.base(x)
        finally:
            parametrize.remove_parametrizations(self.base, "weight", leave_parametrized=False)


def samples():
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(9, 5, generator=generator), torch.arange(9) % 3)


def test_a_pass_that_vmap_cuts_off_leaves_the_model_as_it_was():
    model = AdaptedForAWhile().eval()
    kinds = [type(module) for module in model.modules()]
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(RuntimeError):
        LayerCapture(model, cross_entropy, Routes(), is_strict=True)(samples())
    assert [type(module) for module in model.modules()] == kinds
    assert [name for name, _ in model.named_parameters()] == names
    assert list(trainable_parameters(model)) == ["shift"]


def test_what_is_cut_off_by_vmap_is_attributed_on_single_samples():
    model, examples = AdaptedForAWhile().eval(), samples()
    expected = one_by_one_gradients(model, cross_entropy, examples.inputs, examples.targets)
    plan = plan_gradients(tiny_workload(), model, [("training", examples)], 4, "recompute", torch.float32, CPU)
    rows = rows_of(compute_gradients(plan))
    assert rows.shape == expected.shape
    assert (rows - expected).norm() <= FLOAT32 * expected.norm()
