from __future__ import annotations

import pytest
import torch

from bench.gradient_rows import rows_by_layers, rows_by_vmap, rows_one_by_one
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import dropout_perceptron, tiny_workload


@pytest.mark.parametrize("make", [rows_by_layers, rows_by_vmap, rows_one_by_one])
def test_every_way_makes_all_rows_of_more_than_one_batch(make):
    torch.manual_seed(0)
    workload, model = tiny_workload(), dropout_perceptron().eval()
    expected = one_by_one_gradients(model, workload.loss, workload.train.inputs, workload.train.targets)
    found = make(workload, model)()
    assert len(found) == 60
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
