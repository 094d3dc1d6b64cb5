"""Samples that take a way through the model which none of those compared beforehand takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.gradient_cases import CPU, rows_of
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import tiny_workload

RARE = 37


class Rare(nn.Module):
    """Does something else where the first input exceeds 2, as it does for one sample of inputs that are no larger."""

    def __init__(self, otherwise):
        super().__init__()
        self.first, self.out, self.otherwise = nn.Linear(5, 5), nn.Linear(5, 3), otherwise
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0, -1.0, 0.3]))

    def forward(self, x):
        if len(x) > 1:
            return torch.cat([self(one) for one in x.split(1)])
        hidden = torch.tanh(self.first(x)) * self.scale
        if x[0, 0] > 2:
            hidden = self.otherwise(self, hidden)
        return self.out(hidden)


def selects_by_sign(model, hidden):
    """Select by a mask, which torch.func.vmap cannot run."""
    hidden = hidden.clone()
    hidden[hidden > 0] += 1
    return model.first(hidden)


def scales_in_place(model, hidden):
    """Use parameters in ways that are not followed layer by layer."""
    return hidden.clone().mul_(model.scale) + torch.func.vmap(lambda row: model.first.weight @ row)(hidden)


def is_not_a_number(model, hidden):
    """Decide by a number that does not equal itself."""
    return hidden * 2 if math.isnan((hidden.detach() * float("nan")).sum().item()) else hidden


class Product(torch.autograd.Function):
    """A matrix product that torch.func.vmap can run, and whose call nobody intercepts."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return x @ weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, error):
        x, weight = ctx.saved_tensors
        return error @ weight.t(), x.t() @ error


def uses_a_function_of_its_own(model, hidden):
    return hidden + Product.apply(hidden, model.first.weight)


def hides_from_interception(model, hidden):
    with torch._C.DisableTorchFunction():
        return hidden * model.scale.clone()


def checkpoints(model, hidden):
    """Differentiate by a graph inside the graph, which refuses torch.autograd.grad."""
    return checkpoint(model.first, hidden, use_reentrant=True)


def differentiates(model, hidden):
    """Use the derivative of a layer by its input, whose own derivative by the weights belongs to no call."""
    with torch.enable_grad():
        inputs = hidden.detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(model.first(inputs)).sum(), inputs, create_graph=True)
    return hidden + slope


def differentiates_forwards(model, hidden):
    return hidden + torch.func.jvp(lambda x: torch.tanh(model.first(x)), (hidden,), (hidden.detach(),))[1]


def changes_through_a_view(model, hidden):
    """Change what is computed from parameters where another name of it is used."""
    weight = model.first.weight.clone()
    row = weight[0]
    row.mul_(model.scale)
    return hidden @ weight


def halves_a_gradient(model, hidden):
    """Change a gradient where there is one."""
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: gradient / 2)
    return hidden


OTHERWISE = [
    selects_by_sign,
    scales_in_place,
    is_not_a_number,
    uses_a_function_of_its_own,
    hides_from_interception,
    checkpoints,
    differentiates,
    differentiates_forwards,
    changes_through_a_view,
    halves_a_gradient,
]


def rare_samples():
    """Return samples of which the rare one is as long as others, and neither first nor last."""
    generator = torch.Generator().manual_seed(2)
    inputs = nn.functional.normalize(torch.randn(60, 5, generator=generator)) * torch.linspace(2, 2.3, 60)[:, None]
    inputs[:, 0].clamp_(max=1.9)
    inputs[RARE] = torch.tensor([2.1, 0.2, 0.2, 0.2, 0.2])
    return Examples(inputs, torch.randint(0, 3, (60,), generator=generator))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, of its forward derivatives
@pytest.mark.parametrize("offload", ["cpu", "recompute"])
@pytest.mark.parametrize("otherwise", OTHERWISE)
def test_rare_samples_have_the_gradients_of_float64_backward_passes(otherwise, offload, tmp_path):
    torch.manual_seed(0)
    model, examples = Rare(otherwise).eval(), rare_samples()
    workload = tiny_workload()
    plan = plan_gradients(workload, model, [("training", examples)], 7, offload, torch.float32, CPU)
    assert RARE not in plan.checked.rows
    assert plan.routes == Routes()
    rows = rows_of(compute_gradients(plan))
    expected = one_by_one_gradients(model, cross_entropy, examples.inputs, examples.targets)
    assert ((rows - expected).norm(dim=1) <= 2e-6 * expected.norm(dim=1)).all()


def test_samples_that_decide_by_nan_are_followed_together():
    torch.manual_seed(0)
    model, examples = Rare(is_not_a_number).eval(), rare_samples().subset([RARE, RARE])
    captures = LayerCapture(model, cross_entropy, Routes(), is_strict=True)(examples)
    assert set(captures) == {name for name, _ in model.named_parameters()}


def test_where_routes_are_chosen_vmap_must_run_the_model():
    model, examples = Rare(selects_by_sign).eval(), rare_samples()
    with pytest.raises(RuntimeError, match="vmap"):
        LayerCapture(model, cross_entropy, Routes(), is_strict=True)(examples.subset([RARE]))
