from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from bench import kronecker
from tests.reference_training import dropout_perceptron, tiny_workload

needs_kronfluence = pytest.mark.skipif(
    importlib.util.find_spec("kronfluence") is None, reason="kronfluence is not installed"
)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    return tiny_workload(), dropout_perceptron().eval()


@needs_kronfluence
def test_both_routes_give_the_same_scores(task):
    workload, model = task
    (_, first, ours), (_, second, theirs) = kronecker.steps()
    assert (first, second) == ("factors", "kronfluence")
    found, expected = (step(workload, copy.deepcopy(model))().double() for step in (ours, theirs))
    assert found.shape == (60, 7)
    assert (found - expected).norm() < 1e-4 * found.norm()


def test_without_the_library_there_is_nothing_to_compare_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert kronecker.steps() == []
    assert "EK-FAC scores: left out, kronfluence is not installed" in capsys.readouterr().out
