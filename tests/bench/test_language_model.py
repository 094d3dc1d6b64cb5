from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from bench import language_model
from tests.reference_training import tiny_workload


@pytest.fixture(scope="module")
def rows():
    """(7, d) gradients of the sequences that belong to 60 samples, one by one."""
    pytest.importorskip("transformers")
    workload, model = language_model.gpt2(60 // language_model.SHARE)
    parameters = list(model.parameters())
    found = []
    for one in workload.train.inputs:
        loss = workload.loss(model(one[None]), one[None]).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


def test_every_way_has_the_same_gradients_and_what_is_kept_is_a_fraction_of_them(rows):
    assert rows.shape[1] == 923_392
    steps = language_model.steps()
    assert len(steps) == 5
    for _, route, step in steps:
        made = step(tiny_workload(), None)()
        if not isinstance(made, Tensor):
            assert route == "layer by layer, kept"
            assert made.kept_bytes < rows.nbytes / 5
            made = torch.cat([block for _, block in made.column_blocks()], dim=1)
        expected = rows.sum(0) if route == "plain passes, sums" else rows
        assert (made - expected).norm() < 1e-5 * expected.norm()


def test_without_the_package_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert language_model.steps() == []
    assert "gradients of GPT-2: left out, transformers is not installed" in capsys.readouterr().out
