from __future__ import annotations

import pytest
import torch

from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import flat_parameters
from common.sketches.factor_projection import FactorProjection
from common.sketches.kronecker import KroneckerSketch
from common.sketches.tensorsketch import TensorSketch
from common.workloads.losses import cross_entropy
from tests.layer_cases import make_case
from tests.reference_factored import columns_of
from tests.reference_gradients import one_by_one_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", [TensorSketch, KroneckerSketch])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_samples_are_projected_as_their_gradients_by_plain_autograd(kind, scale):
    model, _, examples = make_case("tied_weights")
    sketch = kind(flat_parameters(model), 32, 3, 0)

    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * scale

    gradients = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    found = FactorProjection(model, loss, Routes(), sketch, 4)(examples)
    expected = gradients @ columns_of(sketch, 32).T
    assert ((found.projected - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-5, atol=0)
