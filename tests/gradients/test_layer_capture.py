from __future__ import annotations

import pytest
import torch
from torch import nn

from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.layer_products import write_products
from common.gradients.layer_shares import Linear, Lookup, matrix_shape
from common.workloads.records import Examples
from tests.layer_cases import make_case
from tests.layer_kinds import BY_VMAP, LAYER_BY_LAYER, LOOKUPS, Weights, loss, make_kind
from tests.reference_gradients import one_by_one_gradients


def rows_of(model, captures, count):
    blocks = []
    for name, parameter in model.named_parameters():
        rows, cols = matrix_shape(parameter)
        blocks.append(torch.empty(count, rows * cols, dtype=parameter.dtype))
        write_products(captures.get(name, []), slice(0, rows), cols, blocks[-1])
    return torch.cat(blocks, dim=1)


def captured_and_expected(name, routes):
    model, examples = make_kind(name)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    model, inputs = model.double(), examples.inputs
    examples = Examples(inputs.double() if inputs.is_floating_point() else inputs, examples.targets)
    capture = LayerCapture(model, loss, routes)
    return model, rows_of(model, capture(examples), len(examples)), expected, capture.not_followed(examples.subset([0]))


@pytest.mark.parametrize("name", [*LAYER_BY_LAYER, *LOOKUPS])
def test_every_kind_of_layer_gives_the_gradients_of_one_by_one_backward_passes(name):
    _, found, expected, not_followed = captured_and_expected(name, Routes())
    assert not_followed == ({}, {})
    assert (expected.norm(dim=1) > 0).all()
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-10


def test_a_tensor_without_entries_that_is_computed_from_a_parameter_costs_no_other_its_route():
    torch.manual_seed(0)
    model = Weights(lambda x, w: torch.cat([x, w.repeat(len(x), 0)], dim=1) * w, (1, 5)).double().eval()
    examples = Examples(torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 3, (6,)))
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    for routes in (Routes(), Routes(singly="samples alone")):
        captures = LayerCapture(model, loss, routes, is_strict=True)(examples)
        assert torch.allclose(rows_of(model, captures, len(examples)), expected, rtol=1e-10)


@pytest.mark.parametrize("name", BY_VMAP)
def test_a_use_that_cannot_be_followed_is_said_and_right_by_the_next_step(name):
    _, _, _, (unknown, hidden) = captured_and_expected(name, Routes())
    assert not hidden
    assert list(unknown) == ["weights.0"]
    assert "in a way that is not followed" in unknown["weights.0"]
    _, found, expected, _ = captured_and_expected(name, Routes(by_vmap=unknown))
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-10


@pytest.mark.parametrize(
    "name", ["attention", "gru", "weight_norm", "tied_transpose", "embedding_bag", "padded_encoder"]
)
def test_all_steps_give_the_same_gradients(name):
    model, _ = make_kind(name)
    names = [name for name, _ in model.named_parameters()]
    for routes in (
        Routes(by_vmap=dict.fromkeys(names, "")),
        Routes(one_at_a_time=dict.fromkeys(names, "")),
        Routes(by_vmap=dict.fromkeys(names[::3], ""), one_at_a_time=dict.fromkeys(names[1::3], "")),
    ):
        _, found, expected, _ = captured_and_expected(name, routes)
        assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-10


class Branches(nn.Module):
    """Cuts its input to the sample's own length, and treats short ones by another layer."""

    def __init__(self):
        super().__init__()
        self.short, self.long, self.out = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        length = int((x != 0).any(2).sum(1).max())
        layer = self.short if length < 3 else self.long
        return self.out(torch.tanh(layer(x[:, :length])).mean(1))


def branching_samples():
    inputs = torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([5, 2, 4, 1, 5, 3, 2])
    inputs[torch.arange(5) >= lengths[:, None]] = 0
    return Examples(inputs.double(), torch.arange(7) % 3)


def test_samples_that_take_different_ways_through_the_model_are_captured_group_by_group():
    torch.manual_seed(0)
    model, examples = Branches().double().eval(), branching_samples()
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    captures = LayerCapture(model, loss, Routes())(examples)
    assert captures["short.weight"][0].errors.shape == (7, 2, 5)
    assert captures["long.weight"][0].errors.shape == (7, 5, 5)
    assert (rows_of(model, captures, 7) - expected).norm() < 1e-12 * expected.norm()


def test_only_wanted_parameters_are_captured_and_as_without_the_wish():
    model, loss, examples = make_case("repeated_tokens")
    capture = LayerCapture(model, loss, Routes())
    every, wanted = capture(examples), {"tokens.weight", "out.bias"}
    some = capture(examples, wanted)
    assert set(some) == wanted
    for name in wanted:
        for one, other in zip(some[name], every[name], strict=True):
            assert type(one) is type(other)
            assert torch.equal(one.errors, other.errors)


def test_a_parameter_that_the_model_does_not_use_is_absent():
    model, loss, examples = make_case("repeated_tokens")
    missing = {name for name, _ in model.named_parameters()} - set(LayerCapture(model, loss, Routes())(examples))
    assert missing == {"unused.weight", "unused.bias"}


def test_a_parameter_with_two_uses_has_a_capture_of_each_kind():
    model, loss, examples = make_case("tied_weights")
    captures = LayerCapture(model, loss, Routes())(examples)
    assert {type(capture) for capture in captures["tokens.weight"]} == {Lookup, Linear}


def test_a_layer_used_at_every_time_step_has_one_capture_with_as_many_positions():
    model, examples = make_kind("gru_with_state")
    captures = LayerCapture(model, loss, Routes())(examples)
    assert [(type(capture), capture.errors.shape) for capture in captures["layer.weight_hh_l0"]] == [
        (Linear, (6, 5, 9))
    ]
    assert [capture.errors.shape for capture in captures["layer.bias_hh_l0"]] == [(6, 9, 1)]


class Mixing(nn.Module):
    """Mixes features by a constant matrix before a layer."""

    def __init__(self, matrix):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("matrix", matrix)

    def forward(self, inputs):
        return self.layer(torch.tanh(torch.sparse.mm(self.matrix, inputs.t() * self.layer.weight.sum()).t()))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_what_a_sample_holds_counts_sparse_matrices_by_their_entries(layout):
    torch.manual_seed(0)
    matrix, examples = torch.eye(4), Examples(torch.randn(1, 4), torch.tensor([1]))
    model = Mixing(matrix.to_sparse(layout=layout)).eval()
    model_of_dense = Mixing(matrix)
    model_of_dense.layer.load_state_dict(model.layer.state_dict())
    expected = one_by_one_gradients(model_of_dense, loss, examples.inputs, examples.targets)
    captures, held = LayerCapture(model, loss, Routes()).probe(examples)
    assert (rows_of(model, captures, 1) - expected).norm() < 1e-6 * expected.norm()
    assert 0 < held < 10_000
