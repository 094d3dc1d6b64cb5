from __future__ import annotations

import torch
from torch import nn

from common.workloads.disabled_gradients import differing_gradients, used_without_gradients
from common.workloads.losses import cross_entropy
from common.workloads.precision import copied
from common.workloads.records import Examples

FEW = Examples(torch.linspace(-1, 1, 8).view(2, 4), torch.tensor([0, 2]))


class Net(nn.Module):
    """Two layers, of which the first is run by a function of its own."""

    def __init__(self, run=lambda layer, x: layer(x)):
        super().__init__()
        self.first, self.out, self.run = nn.Linear(4, 5), nn.Linear(5, 3), run

    def forward(self, x):
        return self.out(torch.tanh(self.run(self.first, x)))


def without(layer, x):
    with torch.no_grad():
        return layer(x)


def for_good(layer, x):
    torch.set_grad_enabled(False)
    return layer(x)


def looked_at(layer, x):
    with torch.no_grad():
        assert layer.weight.shape == (5, 4)
        assert layer.weight.requires_grad
    return layer(x)


def used(model):
    """Return the names of the parameters that are used where gradients are disabled."""
    found = {id(tensor) for tensor in used_without_gradients(lambda: model(FEW.inputs))}
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def test_parameters_are_found_that_are_used_while_gradients_are_disabled():
    assert used(Net()) == set()
    assert used(Net(without)) == {"first.weight", "first.bias"}
    with torch.enable_grad():
        assert used(Net(for_good)) == {"first.weight", "first.bias", "out.weight", "out.bias"}
    assert torch.is_grad_enabled()


def test_to_look_at_a_shape_is_no_use():
    assert used(Net(looked_at)) == set()


def test_a_frozen_parameter_may_be_used_without_gradients():
    model = Net(without)
    model.first.requires_grad_(False)
    assert used(model) == set()


def test_what_is_computed_from_a_parameter_and_then_used_without_gradients_is_found_too():
    doubled = 2 * Net().first.weight

    def run():
        with torch.no_grad():
            doubled.sum()

    (found,) = used_without_gradients(run)
    assert found is doubled


def test_gradients_are_enabled_for_the_function_whatever_they_were_before():
    with torch.no_grad():
        assert used(Net()) == set()
        assert not torch.is_grad_enabled()


# --- gradients that differ ----------------------------------------------------------------------------------


def test_a_copy_has_the_same_gradients():
    model = Net()
    assert differing_gradients(model, copied(model), cross_entropy, FEW) == []
    assert differing_gradients(model, copied(model), cross_entropy, FEW.subset([1])) == []


def test_the_parameters_whose_gradients_differ_are_named():
    model = Net()
    other = copied(model)
    with torch.no_grad():
        other.out.weight[0] *= -1
    found = differing_gradients(model, other, cross_entropy, FEW)
    assert set(found) == {name for name, _ in model.named_parameters()}
    cut = copied(model)
    cut.run = without
    assert differing_gradients(model, cut, cross_entropy, FEW) == ["first.weight", "first.bias"]


def test_half_a_thousandth_is_no_difference_and_a_hundredth_is():
    model = Net()
    for factor, differs in ((1 + 5e-4, False), (1.01, True)):
        other = copied(model)
        # the hook scales the gradient, and nothing else
        other.out.bias.register_hook(lambda gradient, factor=factor: gradient * factor)
        assert differing_gradients(model, other, cross_entropy, FEW) == (["out.bias"] if differs else [])


def test_a_loss_that_reaches_no_parameter_has_no_gradients_that_could_differ():
    model, cut = Net(), Net(for_good)
    cut.load_state_dict(model.state_dict())

    def loss(outputs, targets):
        return outputs.detach().sum(1)

    assert differing_gradients(model, copied(model), loss, FEW) == []
    assert set(differing_gradients(model, cut, cross_entropy, FEW)) == {name for name, _ in model.named_parameters()}


def test_gradients_are_computed_also_where_they_are_disabled_outside():
    model = Net()
    with torch.no_grad():
        assert differing_gradients(model, Net(), cross_entropy, FEW) != []


def test_sparse_gradients_are_compared_by_their_values():
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(6, 4, sparse=True), nn.Linear(4, 3)

        def forward(self, tokens):
            return self.out(self.table(tokens))

    tokens = Examples(torch.tensor([1, 4]), FEW.targets)
    model = Looked()
    other = copied(model)
    assert differing_gradients(model, other, cross_entropy, tokens) == []
    with torch.no_grad():
        other.out.weight *= 2
    assert "table.weight" in differing_gradients(model, other, cross_entropy, tokens)
