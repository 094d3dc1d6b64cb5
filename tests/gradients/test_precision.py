from __future__ import annotations

import torch
from torch import nn

from common.gradients.precision import attributed
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples

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
    assert attributed(model, cross_entropy, examples, CPU) == (model, examples)
    assert capsys.readouterr().out == ""


def test_a_sixteen_bit_base_is_used_in_float32_arithmetic_and_said(capsys):
    model = Adapter(torch.bfloat16)
    wide, examples = attributed(model, cross_entropy, samples(torch.bfloat16), CPU)
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
