from __future__ import annotations

import pytest
import torch
from torch import nn

from common.workloads.records import Examples, TrainingRecipe, Workload
from common.workloads.running import backward_pass, complete, draws_random_numbers, reaches, run_model, without_graph
from common.workloads.training import fresh_model, train_model


class Named(nn.Module):
    def forward(self, first, second):
        return first.add_(1) - second


@pytest.mark.parametrize("form", [dict, tuple])
def test_several_inputs_are_the_models_arguments_and_stay_as_they_are(form):
    first, second = torch.ones(3), torch.full((3,), 5.0)
    inputs = {"second": second, "first": first} if form is dict else (first, second)
    assert run_model(Named(), inputs).tolist() == [-3, -3, -3]
    assert first.tolist() == [1, 1, 1]


def test_random_numbers_are_seen_by_the_generator_that_they_change():
    assert draws_random_numbers(lambda: torch.rand(1), "cpu")
    assert not draws_random_numbers(lambda: torch.rand(1, generator=torch.Generator()), "cpu")


def test_a_graph_is_kept_only_where_a_function_differentiates_itself():
    weight = torch.ones(2, requires_grad=True)

    def slope():
        return torch.autograd.grad((weight**2).sum(), weight)[0] * weight

    assert without_graph(slope).tolist() == [2, 2]
    assert not without_graph(lambda: weight * 2).requires_grad
    with pytest.raises(RuntimeError, match="size"):
        without_graph(lambda: weight + torch.ones(3))


def test_fused_transformer_layers_are_off_while_a_model_runs_and_then_as_before():
    seen = []
    run_model(lambda x: seen.append(torch.backends.mha.get_fastpath_enabled()), torch.ones(1))
    assert seen == [False]
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_a_scalar_depends_on_is_found_also_through_a_reentrant_checkpoint():
    used, unused = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    parameters = [*used.parameters(), *unused.parameters()]
    plain = backward_pass(used(x).tanh().sum(), parameters)
    total = torch.utils.checkpoint.checkpoint(lambda x: used(x).tanh(), x, use_reentrant=True).sum()
    assert reaches(used(x).sum(), parameters) == [True, True, False, False]
    for one, other in zip(backward_pass(total, parameters), plain, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layers_learn_their_sizes_and_the_mode_stays():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()).train()
    assert complete(model, torch.randn(2, 7)) is model
    assert model.training
    assert tuple(model[0].weight.shape) == (4, 7)
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_embedding_with_sparse_gradients_is_trained_as_a_dense_one(optimizer):
    inputs = torch.arange(12).view(6, 2) % 5
    examples = Examples(inputs, torch.arange(6) % 3)

    def make(sparse):
        return lambda: nn.Sequential(nn.Embedding(5, 2, sparse=sparse), nn.Flatten(), nn.Linear(4, 3))

    recipe = TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=4, optimizer=optimizer)
    loss = nn.CrossEntropyLoss(reduction="none")
    states = []
    for sparse in (False, True):
        workload = Workload("embedding", make(sparse), examples, examples, loss, recipe)
        assert isinstance(fresh_model(workload, 0)[0], nn.Embedding)
        states.append(train_model(workload, torch.arange(6), 0, "cpu", progress=False).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
