from __future__ import annotations

import dataclasses

import pytest
import torch

from common.workloads.records import Examples, TrainingRecipe
from tests.reference_training import random_examples, tiny_workload


@pytest.mark.parametrize("indices", [slice(2, 5), [4, 0, 4], torch.tensor([6, 1])], ids=["slice", "list", "tensor"])
def test_a_subset_keeps_inputs_and_targets_together_in_the_order_asked_for(indices):
    examples = Examples(torch.arange(14).reshape(7, 2), torch.arange(7))
    subset = examples.subset(indices)
    assert torch.equal(subset.inputs[:, 0], 2 * subset.targets)
    assert torch.equal(subset.targets, torch.arange(7)[indices])
    assert len(subset) == len(torch.arange(7)[indices])


def test_what_training_minimises_is_the_mean_loss_unless_the_workload_says_otherwise():
    examples = random_examples(6, seed=0)
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    plain = tiny_workload()
    assert plain.objective(outputs, examples.targets) == plain.loss(outputs, examples.targets).mean()
    summed = tiny_workload(training_loss=lambda outputs, targets: outputs.sum())
    assert summed.objective(outputs, examples.targets) == outputs.sum()


def test_records_cannot_be_changed():
    for record, name in ((random_examples(2, seed=0), "inputs"), (TrainingRecipe(1, 0.1), "epochs")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)
