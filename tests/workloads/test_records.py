from __future__ import annotations

import dataclasses

import pytest
import torch

from common.workloads.records import Examples, TrainingRecipe, concatenate
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


FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, x + 100),
    "dict": lambda x: {"ids": x, "mask": x + 100},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_parts_are_joined_in_order_and_in_the_form_of_their_inputs(form):
    numbers = torch.arange(14).reshape(7, 2)
    cut = [Examples(form(numbers[rows]), numbers[rows, 0]) for rows in (slice(3), slice(3, 4), slice(4, 7))]
    joined, whole = concatenate(cut), Examples(form(numbers), numbers[:, 0])
    assert type(joined.inputs) is type(whole.inputs)
    assert all(map(torch.equal, joined.tensors(), whole.tensors()))


def test_named_inputs_are_joined_by_name_in_whatever_order_they_come():
    first = Examples({"a": torch.tensor([1]), "b": torch.tensor([2])}, torch.tensor([0]))
    second = Examples({"b": torch.tensor([4]), "a": torch.tensor([3])}, torch.tensor([0]))
    joined = concatenate([first, second]).inputs
    assert {name: tensor.tolist() for name, tensor in joined.items()} == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize("other", [{"a": torch.ones(1)}, (torch.ones(1),) * 3, torch.ones(1)], ids=str)
def test_parts_whose_inputs_do_not_match_are_refused(other):
    targets = torch.zeros(1)
    with pytest.raises(ValueError, match="different names or numbers"):
        concatenate([Examples((torch.ones(1), torch.ones(1)), targets), Examples(other, targets)])


def test_a_model_that_comes_trained_has_no_recipe_to_train_with():
    assert tiny_workload().required_recipe() == tiny_workload().recipe
    with pytest.raises(ValueError, match="tiny has no recipe: its model comes trained"):
        tiny_workload(recipe=None).required_recipe()


def test_records_cannot_be_changed():
    for record, name in ((random_examples(2, seed=0), "inputs"), (TrainingRecipe(1, 0.1), "epochs")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)
