from __future__ import annotations

import pytest
import torch
from torch import nn

from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors
from common.gradients.stable_rank import mean_stable_rank
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.layer_kinds import loss, make_kind
from tests.reference_gradients import one_by_one_gradients


def test_it_is_the_energy_weighted_mean_over_matrices_and_then_samples():
    model, examples = make_kind("transformer_encoder")
    rows = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    factors = LayerFactors(model, loss, Routes())
    expected = []
    for row in rows:
        matrices = [row[p.columns].view(p.rows, p.cols) for p in factors.parameters if p.is_matrix]
        energies = torch.stack([matrix.square().sum() for matrix in matrices])
        ranks = torch.stack([e / torch.linalg.matrix_norm(x, 2) ** 2 for x, e in zip(matrices, energies, strict=True)])
        expected.append(((energies * ranks).sum() / energies.sum()).item())
    found = mean_stable_rank(factors, examples)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert 1 < found < 5


def test_a_model_of_vectors_alone_has_none():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.scale

    examples = Examples(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert mean_stable_rank(LayerFactors(Scale().eval(), cross_entropy, Routes()), examples) is None


def test_gradients_that_are_all_zero_have_none():
    model = nn.Linear(3, 2, bias=False).eval()
    factors = LayerFactors(model, cross_entropy, Routes())
    assert mean_stable_rank(factors, Examples(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))) is None
