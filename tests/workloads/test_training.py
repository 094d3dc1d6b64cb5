from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from common.foundations.errors import UserError
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples, TrainingRecipe
from common.workloads.training import (
    can_train_together,
    evaluate_accuracy,
    evaluate_losses,
    fresh_model,
    train_model,
    train_together,
)
from tests.reference_training import batch_norm_perceptron, dropout_perceptron, perceptron, tiny_workload

SUBSETS = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(s))[:29] for s in range(4)])
SEEDS = [5, 6, 7, 8]


def in_double(workload):
    def make_model():
        return workload.make_model().double()

    train = Examples(workload.train.inputs.double(), workload.train.targets)
    return dataclasses.replace(workload, make_model=make_model, train=train)


def largest_difference(state, other):
    assert list(state) == list(other)
    return max((state[name] - other[name]).abs().max().item() for name in state)


RECIPES = [
    TrainingRecipe(epochs=4, learning_rate=0.1, momentum=0.9, batch_size=8),
    TrainingRecipe(epochs=4, learning_rate=0.1, batch_size=29),
    TrainingRecipe(epochs=4, learning_rate=0.01, batch_size=8, optimizer="adam"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.optimizer}-{recipe.momentum}")
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-13)])
def test_a_model_trained_together_equals_the_same_model_trained_alone(recipe, double, tolerance):
    workload = tiny_workload(perceptron, recipe=recipe)
    workload = in_double(workload) if double else workload
    together = train_together(workload, SUBSETS, SEEDS, "cpu")
    for state, indices, seed in zip(together, SUBSETS, SEEDS, strict=True):
        alone = train_model(workload, indices, seed, "cpu")
        assert largest_difference(state, alone.state_dict()) < tolerance
        assert largest_difference(state, fresh_model(workload, seed).state_dict()) > 0.01


def test_dropout_is_active_in_training_and_differs_between_models():
    # One subset, one seed for the weights of all: without dropout the models would be equal.
    same = SUBSETS[:1].expand(3, -1)
    workload = tiny_workload(dropout_perceptron)
    states = train_together(workload, same, [5, 5, 5], "cpu")
    assert largest_difference(states[0], states[1]) > 1e-3
    assert largest_difference(states[1], states[2]) > 1e-3
    plain = train_model(tiny_workload(perceptron), SUBSETS[0], 5, "cpu").state_dict()
    assert largest_difference(train_model(workload, SUBSETS[0], 5, "cpu").state_dict(), plain) > 1e-3


@pytest.mark.parametrize("make_model", [dropout_perceptron, batch_norm_perceptron])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_model):
    workload = tiny_workload(make_model)
    first, again, other = (train_model(workload, SUBSETS[0], seed, "cpu").state_dict() for seed in (3, 3, 4))
    assert largest_difference(first, again) == 0
    assert largest_difference(first, other) > 0.01


def test_the_same_seeds_give_the_same_weights_together():
    workload = tiny_workload(dropout_perceptron)
    first, again = (train_together(workload, SUBSETS, SEEDS, "cpu") for _ in range(2))
    assert all(largest_difference(a, b) == 0 for a, b in zip(first, again, strict=True))


def test_training_leaves_the_global_generator_alone_and_ignores_it():
    workload = tiny_workload(dropout_perceptron)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    alone = train_model(workload, SUBSETS[0], 3, "cpu").state_dict()
    together = train_together(workload, SUBSETS, SEEDS, "cpu")
    assert can_train_together(workload)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert largest_difference(train_model(workload, SUBSETS[0], 3, "cpu").state_dict(), alone) == 0
    assert largest_difference(train_together(workload, SUBSETS, SEEDS, "cpu")[2], together[2]) == 0


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5))

    def forward(self, inputs):
        return inputs @ self.weight


@pytest.mark.parametrize("batch_size", [1, 8, 29, 64])
def test_every_sample_is_used_once_an_epoch_the_last_small_batch_too(batch_size):
    # For an objective linear in the weights every batch adds its own sum, in whatever order.
    workload = tiny_workload(
        Linear,
        loss=lambda outputs, targets: outputs,
        training_loss=lambda outputs, targets: outputs.sum(),
        recipe=TrainingRecipe(epochs=3, learning_rate=0.5, batch_size=batch_size),
    )
    for state, indices in zip(train_together(workload, SUBSETS, SEEDS, "cpu"), SUBSETS, strict=True):
        expected = -3 * 0.5 * workload.train.inputs[indices].sum(0)
        torch.testing.assert_close(state["weight"], expected)
        torch.testing.assert_close(train_model(workload, indices, 0, "cpu").weight.detach(), expected)


def test_the_trained_model_is_in_eval_mode():
    assert not train_model(tiny_workload(), SUBSETS[0], 0, "cpu").training


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs if outputs.sum() > 0 else -outputs


@pytest.mark.parametrize("make_model", [batch_norm_perceptron, lambda: nn.Linear(5, 200_000), DataDependent])
def test_models_that_cannot_or_should_not_be_stacked_are_trained_one_by_one(make_model):
    assert not can_train_together(tiny_workload(make_model))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def test_shared_parameters_stay_shared():
    workload = tiny_workload(Tied)
    assert can_train_together(workload)
    state = train_together(workload, SUBSETS, SEEDS, "cpu")[1]
    model = fresh_model(workload, 0)
    model.load_state_dict(state)
    assert largest_difference(train_model(workload, SUBSETS[1], SEEDS[1], "cpu").state_dict(), state) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_losses_equal_those_of_one_sample_at_a_time_in_eval_mode(batch_size):
    workload = tiny_workload(dropout_perceptron)
    model = fresh_model(workload, 0)
    losses = evaluate_losses(workload, model, workload.test, "cpu", batch_size)
    assert losses.dtype == torch.float32
    assert not losses.requires_grad
    with torch.no_grad():
        for i in range(len(workload.test)):
            one = workload.test.subset(slice(i, i + 1))
            torch.testing.assert_close(losses[i : i + 1], workload.loss(model(one.inputs), one.targets))


class Sure(nn.Module):
    """Is sure of class 0, of some samples to 1e-9: nothing of that is left of 1 in float32."""

    def forward(self, inputs):
        return nn.functional.pad(inputs[:, :1], (0, 2))


def test_losses_of_samples_that_are_fit_have_their_digits():
    margins = torch.tensor([5.0, 15.0, 17.0, 20.0])
    examples = Examples(margins[:, None], torch.zeros(4, dtype=torch.int64))
    losses = evaluate_losses(tiny_workload(Sure), Sure(), examples, "cpu")
    torch.testing.assert_close(losses.double(), torch.log1p(2 * torch.exp(-margins.double())), rtol=1e-6, atol=0)


def test_losses_that_have_float32_numbers_of_their_own_are_computed_in_float32():
    own = torch.eye(3)
    workload = tiny_workload(loss=lambda outputs, targets: cross_entropy(outputs @ own, targets))
    model = fresh_model(workload, 0).eval()
    losses = evaluate_losses(workload, model, workload.test, "cpu")
    with torch.no_grad():
        assert torch.equal(losses, cross_entropy(model(workload.test.inputs), workload.test.targets))


def test_accuracy_is_the_share_of_correct_samples_and_none_without_the_notion():
    workload = tiny_workload()
    model = fresh_model(workload, 0).eval()
    right = (model(workload.test.inputs).argmax(1) == workload.test.targets).sum().item()
    assert evaluate_accuracy(workload.correct, model, workload.test, "cpu", batch_size=2) == pytest.approx(right / 7)
    assert evaluate_accuracy(None, model, workload.test, "cpu") is None


@pytest.mark.filterwarnings("ignore:overflow")
def test_diverging_training_is_one_line_that_names_the_learning_rate():
    workload = tiny_workload(
        Linear,
        loss=lambda outputs, targets: outputs**4,
        recipe=TrainingRecipe(epochs=5, learning_rate=1e30, batch_size=8),
    )
    workload = dataclasses.replace(workload, make_model=lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)))
    with pytest.raises(UserError, match=r"diverged: .* learning rate is 1e\+30"):
        train_model(workload, SUBSETS[0], 0, "cpu")
    with pytest.raises(UserError, match="diverged"):
        train_together(workload, SUBSETS, SEEDS, "cpu")


def test_an_unknown_optimizer_is_named():
    workload = tiny_workload(recipe=TrainingRecipe(epochs=1, learning_rate=0.1, optimizer="adagrad"))
    with pytest.raises(UserError, match=r"'adagrad'.*sgd or adam"):
        train_model(workload, SUBSETS[0], 0, "cpu")


def test_the_numbers_of_small_models_do_not_depend_on_the_number_of_cores():
    workload = tiny_workload(dropout_perceptron)
    threads = torch.get_num_threads()
    states = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            alone = train_model(workload, SUBSETS[0], 3, "cpu").state_dict()
            states.append([alone, *train_together(workload, SUBSETS, SEEDS, "cpu")])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(largest_difference(a, b) == 0 for a, b in zip(*states, strict=True))


class Looks(nn.Linear):
    """Looks at the values of its inputs."""

    def forward(self, inputs):
        return super().forward(inputs) * (2 if (inputs > 0).all() else 1)


def test_a_model_that_looks_at_the_values_of_its_inputs_is_not_trained_together():
    assert not can_train_together(tiny_workload(lambda: Looks(5, 3)))


class RandomFeatures(nn.Module):
    """Draws a tensor that is no parameter for each model."""

    def __init__(self):
        super().__init__()
        self.features, self.out = torch.randn(5, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.out(torch.tanh(inputs @ self.features))


def clamped():
    model = nn.Linear(5, 3)
    model.weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return model


class Unstackable(nn.Linear):
    """Fails under vmap, by an exception that is not torch's."""

    def forward(self, inputs):
        if torch._C._functorch.is_batchedtensor(self.weight):
            raise TypeError("one weight, not several")
        return super().forward(inputs)


@pytest.mark.parametrize("make_model", [RandomFeatures, clamped, lambda: Unstackable(5, 3)])
def test_models_that_differ_in_more_than_their_parameters_are_not_trained_together(make_model):
    assert not can_train_together(tiny_workload(make_model))
