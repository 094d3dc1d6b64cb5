from __future__ import annotations

import pytest
import torch
from torch import nn

from common.gradients.autocast import autocast_dtypes, without_autocast
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples

ONE = Examples(torch.linspace(-1, 1, 4)[None], torch.tensor([1]))
ENTERED = torch.autocast.__enter__, torch.autocast.__exit__


class Switching(nn.Module):
    """Computes in 16 bits whatever its parameters are, where that is enabled."""

    def __init__(self, dtype=torch.bfloat16, enabled=True):
        super().__init__()
        self.first, self.out = nn.Linear(4, 64), nn.Linear(64, 3)
        self.dtype, self.enabled = dtype, enabled

    def forward(self, inputs):
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.enabled):
            return self.out(torch.relu(self.first(inputs))).float()


def switching_loss(outputs, targets):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return cross_entropy((outputs @ torch.eye(3)).float(), targets)


@pytest.mark.parametrize(
    ("model", "loss", "dtypes"),
    [
        (nn.Linear(4, 3), cross_entropy, set()),
        (Switching(enabled=False), cross_entropy, set()),
        (Switching(), cross_entropy, {torch.bfloat16}),
        (Switching(torch.float16), cross_entropy, {torch.float16}),
        (nn.Linear(4, 3), switching_loss, {torch.bfloat16}),
        (Switching(torch.float16), switching_loss, {torch.float16, torch.bfloat16}),
    ],
    ids=["plain", "switched off", "model", "float16", "loss", "both"],
)
def test_the_dtypes_that_model_and_loss_switch_to_are_found_where_they_really_switch(model, loss, dtypes):
    assert autocast_dtypes(model, loss, ONE) == dtypes
    assert (torch.autocast.__enter__, torch.autocast.__exit__) == ENTERED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_autocast_a_model_and_a_loss_compute_to_the_last_bit_as_if_it_were_not_there(dtype):
    torch.manual_seed(0)
    model = Switching(dtype)
    plain = nn.Sequential(model.first, nn.ReLU(), model.out)
    copy, loss = without_autocast(model, switching_loss)
    outputs = copy(ONE.inputs)
    assert torch.equal(outputs, plain(ONE.inputs))
    assert torch.equal(loss(outputs, ONE.targets), cross_entropy(outputs @ torch.eye(3), ONE.targets))
    assert autocast_dtypes(copy, loss, ONE) == set()


def test_the_model_itself_goes_on_to_switch():
    model = Switching()
    before = model(ONE.inputs)
    copy, _ = without_autocast(model, cross_entropy)
    assert not torch.equal(copy(ONE.inputs), before)
    assert torch.equal(model(ONE.inputs), before)
    assert copy.first.weight is not model.first.weight


def test_autocast_is_back_after_a_model_that_fails():
    def failing(inputs):
        raise ValueError("not rounded")

    model = Switching()
    model.forward = failing
    with pytest.raises(ValueError, match="not rounded"):
        autocast_dtypes(model, cross_entropy, ONE)
    _, loss = without_autocast(nn.Linear(4, 3), lambda outputs, targets: failing(outputs))
    with pytest.raises(ValueError, match="not rounded"):
        loss(ONE.inputs, ONE.targets)
    assert (torch.autocast.__enter__, torch.autocast.__exit__) == ENTERED
