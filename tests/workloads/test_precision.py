from __future__ import annotations

import torch
from torch import nn

from common.workloads.precision import in_dtype, match_inputs
from common.workloads.records import Examples


def test_a_copy_has_all_floating_point_numbers_in_the_precision_asked_for_and_the_model_stays():
    model = nn.Sequential(nn.Linear(3, 2).to(torch.bfloat16), nn.BatchNorm1d(2))
    copied = in_dtype(model, torch.float64)
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    assert copied[1].num_batches_tracked.dtype == torch.int64
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(copied[0].weight.to(torch.bfloat16), model[0].weight)


def test_inputs_and_targets_that_are_no_integers_follow_in_any_form_of_inputs():
    named = {"ids": torch.tensor([[1], [2]]), "weights": torch.ones(2, 1)}
    cast = match_inputs(Examples(named, torch.zeros(2)), torch.float64)
    assert cast.inputs["ids"].dtype == torch.int64
    assert cast.inputs["weights"].dtype == cast.targets.dtype == torch.float64
    assert match_inputs(Examples(torch.ones(2, 1), torch.tensor([0, 1])), torch.float64).targets.dtype == torch.int64
