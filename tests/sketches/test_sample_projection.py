from __future__ import annotations

import pytest
import torch

from common.gradients.layer_capture import Routes
from common.sketches.row_projection import make_row_projection
from common.sketches.sample_projection import GradientRows, row_lengths
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.reference import normal
from tests.reference_gradients import one_by_one_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).eval()
    return model, Examples(torch.randn(23, 6), torch.arange(23) % 3)


@pytest.mark.parametrize("kind", ["normal", "sjlt"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_samples_are_projected_as_their_gradients_by_plain_autograd(case, kind, batch_size):
    model, examples = case
    gradients = one_by_one_gradients(model, cross_entropy, examples.inputs, examples.targets)
    projection = make_row_projection(kind, 8, 3, gradients.shape[1], torch.device("cpu"))
    found = GradientRows(model, cross_entropy, Routes(), projection, batch_size)(examples)
    torch.testing.assert_close(found.projected, projection(gradients.float()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norms, gradients.double().norm(dim=1), rtol=1e-6, atol=0)


def test_lengths_of_very_short_and_long_rows_are_exact():
    rows = (normal(0, 4, 1000) * torch.tensor([1e-30, 1e-20, 1.0, 1e30])[:, None]).float()
    torch.testing.assert_close(row_lengths(rows), rows.double().norm(dim=1), rtol=1e-14, atol=0)
