from __future__ import annotations

import pytest
import torch
from torch import nn

from common.curvature.blocks import LAYER, MATRIX, VECTOR, find_blocks, without_block
from common.foundations.errors import UserError
from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.layer_cases import SAME_EVEN_KERNEL, make_case


def found_in(name, routes=None):
    model, loss, examples = make_case(name)
    factors = LayerFactors(model.double(), loss, routes or Routes())
    inputs = examples.inputs
    exact = Examples(inputs.double() if inputs.is_floating_point() else inputs, examples.targets)
    shares = list(factors(exact))
    return find_blocks(shares), {share.parameter.name: share for share in shares}, factors.parameters


def by_name(blocks):
    return {block.name: block for block in blocks}


def test_a_bias_is_one_more_column_of_its_weight():
    blocks, _, _ = found_in("mlp")
    assert [(block.rows, block.cols) for block in blocks] == [(128, 785), (64, 129), (10, 65)]
    assert all(block.kind == LAYER and not block.bias_is_row for block in blocks)
    assert sum(block.size for block in blocks) == 109_386


def test_a_bias_of_a_weight_kept_transposed_is_one_more_row():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight)

    torch.manual_seed(0)
    examples = Examples(torch.randn(5, 4), torch.randint(0, 3, (5,)))
    (block,) = find_blocks(list(LayerFactors(Transposed(), cross_entropy, Routes())(examples)))
    assert (block.rows, block.cols, block.bias_is_row) == (5, 3, True)


@SAME_EVEN_KERNEL
def test_scales_and_lone_biases_are_vectors_and_convolutions_are_layers():
    blocks, _, _ = found_in("conv")
    kinds = [(block.kind, block.rows, block.cols) for block in blocks]
    assert kinds == [
        (LAYER, 4, 18),
        (VECTOR, 4, 1),
        (VECTOR, 4, 1),
        (LAYER, 5, 4 * 6 + 1),
        (LAYER, 3, 5 * 9 + 1),
        (LAYER, 3, 48 + 1),
    ]


def test_an_embedding_is_a_table_and_one_that_also_predicts_is_a_layer_like_others():
    alone, _, _ = found_in("repeated_tokens")
    assert by_name(alone)["tokens.weight"].is_table
    tied, _, _ = found_in("tied_weights")
    table = by_name(tied)["tokens.weight"]
    assert (table.kind, table.is_table, table.bias) == (LAYER, False, None)
    assert by_name(tied)["out.bias"].kind == VECTOR


def test_a_matrix_that_no_layer_explains_is_a_matrix():
    blocks, _, _ = found_in("tied_weights", Routes(one_at_a_time={"tokens.weight": ""}))
    assert by_name(blocks)["tokens.weight"].kind == MATRIX


def test_every_parameter_is_in_one_block_or_named_as_without_a_gradient():
    for name in ("transformer", "repeated_tokens"):
        blocks, shares, parameters = found_in(name)
        inside = [parameter.name for block in blocks for parameter in block.parameters]
        assert len(set(inside)) == len(inside)
        assert sorted(inside) == sorted(shares)
        assert sorted([*inside, *without_block(parameters, blocks)]) == sorted(p.name for p in parameters)


def test_a_weight_that_is_suddenly_used_in_another_way_is_refused():
    blocks, shares, _ = found_in("tied_weights")
    other, others, _ = found_in("tied_weights", Routes(one_at_a_time={"tokens.weight": ""}))
    with pytest.raises(UserError, match=r"^tokens\.weight is used by some samples in another way"):
        list(by_name(blocks)["tokens.weight"].positions(others["tokens.weight"]))
    assert by_name(other)["tokens.weight"].gradients(shares["tokens.weight"]).shape[1:] == (11, 6)
