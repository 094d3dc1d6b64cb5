from __future__ import annotations

import torch
from torch import nn

from common.gradients.one_at_a_time import gradients, one_gradient, sample_gradients
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.reference_gradients import one_by_one_gradients


def samples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return Examples(inputs, torch.arange(6) % 3)


def test_rows_are_those_of_one_backward_pass_a_sample():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batch = samples()
    found = sample_gradients(model, cross_entropy, batch, list(model.parameters()))
    expected = one_by_one_gradients(model, cross_entropy, batch.inputs, batch.targets)
    torch.testing.assert_close(torch.cat([g.flatten(1) for g in found], dim=1), expected, rtol=1e-12, atol=1e-14)


def test_a_sparse_gradient_is_made_dense():
    table = nn.Embedding(7, 2, sparse=True).double()
    one = Examples(torch.tensor([[3, 3]]), torch.zeros(1))
    (found,) = one_gradient(table, lambda outputs, targets: outputs.sum((1, 2)), one, [table.weight])
    assert not found.is_sparse
    assert found[3].tolist() == [2.0, 2.0]
    assert found.sum() == 4


def test_what_a_loss_does_not_depend_on_has_a_gradient_of_zero():
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    found = gradients((used * 3).sum(), [used, unused])
    assert [g.tolist() for g in found] == [[3.0, 3.0], [0.0, 0.0]]
    assert [g.tolist() for g in gradients(torch.tensor(1.0), [used])] == [[0.0, 0.0]]
