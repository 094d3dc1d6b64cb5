from __future__ import annotations

import pytest
import torch

from common.gradients.length_checks import wrong_length
from common.gradients.verification import Subject
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.reference_gradients import one_by_one_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3).eval()
    examples = Examples(torch.randn(30, 6), torch.arange(30) % 3)
    gradients = one_by_one_gradients(model, cross_entropy, examples.inputs, examples.targets)
    return Subject(model, cross_entropy, examples, torch.float32), gradients.double().norm(dim=1)


def test_lengths_by_plain_autograd_are_right(case):
    subject, norms = case
    assert wrong_length(subject, range(30), norms, seconds=60) is None


def test_the_longest_and_the_shortest_are_always_looked_at(case):
    subject, norms = case
    rows = list(range(5, 30))
    for place in (int(norms[5:].argmax()), int(norms[5:].argmin())):
        wrong = norms[5:].clone()
        wrong[place] *= 1.02 if place == int(norms[5:].argmax()) else 0.98
        found = wrong_length(subject, rows, wrong, seconds=0)
        assert found is not None
        assert found.row == rows[place]
        assert found.expected == pytest.approx(norms[5 + place].item(), rel=1e-5)
