from __future__ import annotations

import pytest
import torch

from common.foundations.errors import UserError
from common.gradients.layer_capture import LayerLayout, capture_layers
from common.gradients.layer_layout import layer_layout
from common.workloads.losses import cross_entropy
from tests.layer_cases import ChangesItsInput, make_case


def test_only_wanted_parameters_are_captured_and_as_without_the_wish():
    model, loss, examples = make_case("repeated_tokens")
    layout = layer_layout(model, loss, examples)
    every = capture_layers(model, loss, examples.inputs, examples.targets, layout)
    wanted = {"tokens.weight", "out.bias"}
    some = capture_layers(model, loss, examples.inputs, examples.targets, layout, wanted)
    assert set(some) == wanted
    for name in wanted:
        for one, other in zip(some[name], every[name], strict=True):
            assert one.kind == other.kind
            assert torch.equal(one.errors, other.errors)


def test_a_parameter_that_the_model_does_not_use_is_absent():
    model, loss, examples = make_case("repeated_tokens")
    layout = layer_layout(model, loss, examples)
    captures = capture_layers(model, loss, examples.inputs, examples.targets, layout)
    missing = {name for name, _ in model.named_parameters()} - set(captures)
    assert missing == {"unused.weight", "unused.bias"}


def test_a_parameter_with_two_uses_has_a_capture_of_each():
    model, loss, examples = make_case("tied_weights")
    layout = layer_layout(model, loss, examples)
    captures = capture_layers(model, loss, examples.inputs, examples.targets, layout)
    assert [capture.kind for capture in captures["tokens.weight"]] == ["lookup", "linear"]


def test_other_layers_than_those_of_the_layout_are_refused():
    model, loss, examples = make_case("repeated_layer")
    layout = layer_layout(model, loss, examples)
    shorter = LayerLayout(layout.calls[1:], layout.batch_dims[1:], {})
    with pytest.raises(UserError, match="calls different layers from one batch to the next"):
        capture_layers(model, loss, examples.inputs, examples.targets, shorter)


def test_an_input_that_is_changed_in_place_after_its_use_is_refused():
    layout = LayerLayout((("linear", "first.weight", "first.bias"), ("linear", "out.weight", "out.bias")), (0, 0), {})
    with pytest.raises(UserError, match=r"input of the layer of 'first\.weight' is changed in place"):
        capture_layers(ChangesItsInput(), cross_entropy, torch.randn(2, 4), torch.tensor([0, 1]), layout)
