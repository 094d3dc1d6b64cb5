from __future__ import annotations

import pytest
import torch
from torch import nn

from common.gradients.one_at_a_time import sample_gradients
from common.gradients.planning import compute_gradients, plan_gradients
from common.gradients.precision import attributed
from common.workloads.losses import cross_entropy
from common.workloads.precision import LossInFloat64
from common.workloads.records import Examples, Workload
from tests.reference_gradients import one_by_one_gradients

CPU = torch.device("cpu")


class Adapter(nn.Module):
    """A frozen base in 16 bits under a trained part in float32."""

    def __init__(self, dtype):
        super().__init__()
        self.base = nn.Linear(4, 5).to(dtype).requires_grad_(False)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head(self.base(inputs.to(self.base.weight.dtype)).to(self.head.weight.dtype))


def samples(dtype=torch.float32):
    return Examples(torch.ones(2, 4, dtype=dtype), torch.tensor([0, 1]))


def test_a_model_without_sixteen_bit_numbers_is_taken_as_it_is(capsys):
    model, examples = Adapter(torch.float32), samples()
    found, _, same = attributed(model, cross_entropy, examples, CPU)
    assert found is model
    assert same is examples
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("gap", [5.0, 15.0, 20.0, 25.0])
def test_gradients_of_samples_that_are_fit_have_their_digits(gap):
    """Cross-entropy of logits (gap, 1, 0): in float32 the derivative by the first is 0 from a gap of 18 on."""
    model = nn.Linear(2, 3, bias=False).eval()
    model.weight.data = torch.tensor([[gap, 0.0], [1.0, 0.0], [0.0, 0.0]])
    examples = Examples(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    workload = Workload("fit", lambda: model, examples, examples, cross_entropy, None)
    plan = plan_gradients(workload, model, [("training", examples)], 8, "cpu", torch.float32, CPU)
    found = compute_gradients(plan)
    (row,) = (block[0].double() for _, block in found.unit_blocks())
    others = torch.exp(torch.tensor([1 - gap, -gap], dtype=torch.float64))
    others /= 1 + others.sum()
    expected = torch.outer(torch.cat([-others.sum()[None], others]), examples.inputs[0].double()).flatten()
    torch.testing.assert_close(row * found.norms[0], expected, rtol=1e-5, atol=0)


def test_a_loss_with_float32_numbers_of_its_own_is_left_as_it_is_and_said(capsys):
    own = torch.eye(3)

    def loss(outputs, targets):
        return cross_entropy(outputs @ own, targets)

    assert attributed(nn.Linear(4, 3), loss, samples(), CPU)[1] is loss
    said = capsys.readouterr().out
    assert said.startswith(
        "gradients: the loss is computed in the precision of the model's outputs, because it does not run in float64 ("
    )
    assert said.count("\n") == 1


def test_a_loss_that_fails_in_any_precision_is_left_for_where_it_is_said(capsys):
    def loss(outputs, targets):
        raise ValueError("never")

    assert attributed(nn.Linear(4, 3), loss, samples(), CPU)[1] is loss
    assert capsys.readouterr().out == ""


def test_a_sixteen_bit_base_is_used_in_float32_arithmetic_and_said(capsys):
    model = Adapter(torch.bfloat16)
    wide, _, examples = attributed(model, cross_entropy, samples(torch.bfloat16), CPU)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert examples.inputs.dtype == torch.float32
    assert torch.equal(wide.base.weight, model.base.weight.float())
    assert capsys.readouterr().out == "gradients: the bfloat16 numbers of the model are used in float32 arithmetic\n"


class Insisting(nn.Linear):
    def forward(self, inputs):
        return nn.functional.linear(inputs.bfloat16(), self.weight, self.bias)


def test_a_model_that_insists_on_sixteen_bits_keeps_them_with_one_line_that_says_what_that_costs(capsys):
    model = Insisting(4, 3).to(torch.bfloat16)
    assert attributed(model, cross_entropy, samples(torch.bfloat16), CPU)[0] is model
    said = capsys.readouterr().out
    assert said.startswith("gradients: computed in the model's bfloat16, because it does not run in float32 (")
    assert "); one rounding there is 0.008 of a number, and what all of them change in scores is not known" in said
    assert said.count("\n") == 1


class Rotating(nn.Module):
    """Turns pairs of features by angles that it keeps as complex numbers, beside weights in 16 bits."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 3).bfloat16()
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.tensor([1.0, 0.1])))

    def forward(self, inputs):
        pairs = torch.view_as_complex(self.first(inputs).float().view(-1, 2, 2))
        return self.out(torch.view_as_real(pairs * self.turns).flatten(1).to(self.out.weight.dtype))


def by_real_numbers(model, inputs):
    """Return what `Rotating` computes, in float64 and without complex numbers."""
    x, y = (inputs.double() @ model.first.weight.double().T + model.first.bias.double()).view(-1, 2, 2).unbind(2)
    cos, sin = torch.cos(torch.tensor([1.0, 0.1]).double()), torch.sin(torch.tensor([1.0, 0.1]).double())
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], 2).flatten(1)
    return turned @ model.out.weight.double().T + model.out.bias.double()


def test_complex_buffers_of_a_sixteen_bit_model_stay_complex():
    torch.manual_seed(0)
    model = Rotating()
    wide, _, examples = attributed(model, cross_entropy, samples(torch.bfloat16), CPU)
    assert torch.allclose(wide(examples.inputs).double(), by_real_numbers(model, examples.inputs), atol=1e-6)


class Switching(nn.Module):
    """Computes in bfloat16 whatever its parameters are."""

    def __init__(self, enabled=True):
        super().__init__()
        self.first, self.out, self.enabled = nn.Linear(4, 64), nn.Linear(64, 3), enabled

    def forward(self, inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            outputs = self.out(torch.relu(self.first(inputs)))
        return outputs.float()


def test_autocast_in_the_forward_pass_is_left_out_and_said(capsys):
    torch.manual_seed(0)
    model = Switching().eval()
    plain = nn.Sequential(model.first, nn.ReLU(), model.out)
    found, loss, examples = attributed(model, cross_entropy, samples(), CPU)
    assert capsys.readouterr().out == (
        "gradients: autocast to bfloat16 in model and loss is left out; all arithmetic is that of the parameters\n"
    )
    rows = sample_gradients(found, loss, examples, list(found.parameters()))
    expected = sample_gradients(plain, LossInFloat64(cross_entropy), examples, list(plain.parameters()))
    assert all(torch.equal(row, other) for row, other in zip(rows, expected, strict=True))
    assert model(examples.inputs).ne(plain(examples.inputs)).any()


def test_autocast_in_the_loss_is_left_out_and_said(capsys):
    def loss(outputs, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            similar = outputs @ torch.eye(3, dtype=outputs.dtype)
        return cross_entropy(similar.to(outputs.dtype), targets)

    torch.manual_seed(0)
    model = nn.Linear(4, 3).eval()
    examples = samples()
    workload = Workload("autocastloss", lambda: model, examples, examples, loss, None)
    plan = plan_gradients(workload, model, [("training", examples)], 8, "cpu", torch.float32, CPU)
    assert "gradients: autocast to bfloat16 in model and loss is left out" in capsys.readouterr().out
    found = compute_gradients(plan)
    expected = one_by_one_gradients(model, cross_entropy, examples.inputs, examples.targets)
    rows = torch.cat([block.double() for _, block in found.unit_blocks()], dim=1) * found.norms[:, None]
    assert ((rows - expected).norm(dim=1) <= 2e-6 * expected.norm(dim=1)).all()


def test_autocast_that_is_switched_off_is_no_reason_for_a_copy(capsys):
    model = Switching(enabled=False)
    assert attributed(model, cross_entropy, samples(), CPU)[0] is model
    assert capsys.readouterr().out == ""


class SwitchingAlone(Switching):
    def forward(self, inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = self.out(torch.relu(self.first(inputs)))
        if outputs.dtype != torch.bfloat16:
            raise ValueError("not rounded")
        return outputs.float()


def test_a_model_that_does_not_run_without_its_autocast_keeps_it(capsys):
    model = SwitchingAlone()
    assert attributed(model, cross_entropy, samples(), CPU)[0] is model
    said = capsys.readouterr().out
    assert said == (
        "gradients: computed under autocast to bfloat16, because model and loss do not run without it "
        "(not rounded); one rounding there is 0.008 of a number, and what all of them change in scores is not "
        "known\n"
    )
