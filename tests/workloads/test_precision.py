from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.workloads import precision
from common.workloads.precision import LossInFloat64, copied, in_dtype, match_inputs
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


def test_complex_numbers_keep_their_imaginary_part():
    model = nn.Linear(3, 2)
    model.register_buffer("turns", torch.polar(torch.ones(4), torch.arange(4.0)))
    model.register_parameter("frozen", nn.Parameter(torch.ones(2, dtype=torch.complex128), requires_grad=False))
    assert in_dtype(model, torch.float64).turns.dtype == torch.complex128
    assert torch.equal(in_dtype(model, torch.float32).turns, model.turns)
    assert in_dtype(model, torch.float32).frozen.dtype == torch.complex64
    inputs = model.turns[:, None]
    cast = match_inputs(Examples(inputs, torch.zeros(4)), torch.float64).inputs
    assert cast.dtype == torch.complex128
    assert torch.equal(cast, inputs.to(torch.complex128))


class Remembers(nn.Linear):
    """Keeps what it has computed last, and a lock."""

    def __init__(self):
        super().__init__(3, 2)
        self.lock, self.seen = threading.Lock(), {}

    def forward(self, inputs):
        self.seen = {"outputs": [super().forward(inputs)]}
        return self.seen["outputs"][0]


def test_a_model_that_keeps_results_of_its_last_run_or_a_lock_can_be_copied():
    model = Remembers()
    model(torch.ones(1, 3)).sum().backward()
    copy = copied(model)
    assert copy.lock is model.lock
    assert torch.equal(copy.seen["outputs"][0], model.seen["outputs"][0])
    assert copy.weight is not model.weight
    assert in_dtype(model, torch.float64)(torch.ones(1, 3).double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_model_with_a_compressed_sparse_matrix_can_be_copied():
    model = nn.Linear(3, 2)
    model.register_buffer("links", torch.eye(3).to_sparse_csr())
    copy = in_dtype(model, torch.float64)
    assert torch.equal(copy.links.to_dense(), torch.eye(3, dtype=torch.float64))
    assert copied(model).links is not model.links


def test_a_loss_gets_all_floating_point_outputs_in_float64_whatever_holds_them():
    outputs = {"logits": torch.ones(2, 3), "ids": torch.tensor([1, 2]), "parts": (torch.ones(2).bfloat16(), None, "a")}

    def loss(seen, targets):
        assert seen["logits"].dtype == seen["parts"][0].dtype == torch.float64
        assert seen["ids"].dtype == torch.int64
        assert seen["parts"][1:] == (None, "a")
        return seen["logits"].sum(1) + targets

    assert torch.equal(LossInFloat64(loss)(outputs, torch.tensor([1, 2])), torch.tensor([4.0, 5.0]).double())


@pytest.mark.parametrize(
    "loss", [F.binary_cross_entropy_with_logits, F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.l1_loss]
)
def test_losses_of_targets_that_are_no_integers_run_in_float64(loss):
    outputs, targets = torch.tensor([2.0, -1.0, 20.0], requires_grad=True), torch.tensor([1.0, 0.0, 1.0])
    LossInFloat64(partial(loss, reduction="none"))(outputs, targets).sum().backward()
    exact = outputs.detach().double().requires_grad_()
    loss(exact, targets.double(), reduction="none").sum().backward()
    torch.testing.assert_close(outputs.grad.double(), exact.grad, rtol=1e-6, atol=0)


def test_outputs_of_too_many_numbers_a_sample_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(precision, "MOST_OUTPUTS", 6)
    seen = []
    loss = LossInFloat64(lambda outputs, targets: seen.append(outputs.dtype) or targets)
    for shape in ((2, 6), (2, 7), (1, 2, 3), (1, 7)):
        loss(torch.ones(shape), torch.zeros(shape[0]))
    assert seen == [torch.float64, torch.float32, torch.float64, torch.float32]
