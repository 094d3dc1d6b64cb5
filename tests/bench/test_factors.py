from __future__ import annotations

import pytest
import torch

from bench import factors
from tests.reference_training import dropout_perceptron, tiny_workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"SIZE": 64, "SIDE": 64, "POSITIONS": 3, "RANK": 8}.items():
        monkeypatch.setattr(factors, name, value)


@pytest.mark.parametrize("step", [step for _, _, step in factors.steps()])
def test_every_projection_runs_and_is_finite(step):
    torch.manual_seed(0)
    workload, model = tiny_workload(), dropout_perceptron().eval()
    found = step(workload, model)()
    assert found.isfinite().all()
    assert found.any()


def test_the_projections_of_one_layer_have_its_length_on_average():
    _, share = factors._layer()
    exact = share.dense().square().sum((1, 2))
    for step in (factors.layer_by_tensorsketch, factors.layer_by_sjlt):
        assert (step(None, None)().square().sum(1) / exact).mean().item() == pytest.approx(1, abs=0.5)
