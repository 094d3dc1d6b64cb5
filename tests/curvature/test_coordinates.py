from __future__ import annotations

import pytest
import torch

from common.curvature import coordinates
from common.curvature.coordinates import EKFAC, KFAC, gather, groups
from common.gradients.layer_capture import Routes
from tests.curvature.test_factors import CPU, fitted
from tests.layer_cases import SAME_EVEN_KERNEL, make_case
from tests.reference_gradients import one_by_one_gradients


def matrices(block, rows):
    """Return the (N, rows, cols) gradients of a block, cut out of whole (N, d) gradients."""
    weight = rows[:, block.weight.columns].view(len(rows), block.weight.rows, block.weight.cols)
    if block.bias is None:
        return weight
    bias = rows[:, block.bias.columns]
    return torch.cat([weight, bias[:, None] if block.bias_is_row else bias[:, :, None]], 1 if block.bias_is_row else 2)


def rotated(factored, gradients):
    a, e = (
        torch.eye(len(side.eigenvalues)).double() if side.basis is None else side.basis
        for side in (factored.a, factored.e)
    )
    return e.T @ gradients @ a


@SAME_EVEN_KERNEL
@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("mlp", ()),
        ("conv", ()),
        ("repeated_conv", ()),
        ("transformer", ()),
        ("repeated_tokens", ()),
        ("tied_weights", ()),
        ("tied_weights", ("tokens.weight",)),
    ],
)
def test_coordinates_are_those_of_one_by_one_gradients(name, alone):
    model, loss, examples = make_case(name)
    found, layers, exact = fitted(model, loss, examples, Routes(one_at_a_time=dict.fromkeys(alone, "")))
    rows = one_by_one_gradients(model, loss, exact.inputs, exact.targets)
    scale = rows.norm()
    for share in layers(exact):
        if (factored := found.get(share.parameter.name)) is not None:
            expected = rotated(factored, matrices(factored.block, rows))
            assert (coordinates.of(factored, share) - expected).norm() <= 1e-12 * scale


def test_the_order_of_multiplication_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    found, _, _ = fitted(*make_case("transformer"))
    for positions in (1, 400):
        factored = found["Wout.weight"]
        block = factored.block
        left = torch.randn(2, positions, block.rows, generator=generator, dtype=torch.float64)
        right = torch.randn(2, positions, block.cols, generator=generator, dtype=torch.float64)
        expected = rotated(factored, left.transpose(1, 2) @ right)
        found_now = coordinates._multiplied(left, right, factored.a, factored.e)
        torch.testing.assert_close(found_now, expected, rtol=1e-10, atol=1e-10)


def test_what_is_gathered_are_sums_over_subsets_unit_queries_and_the_best_diagonal():
    model, loss, examples = make_case("mlp")
    found, layers, exact = fitted(model, loss, examples)
    rows = one_by_one_gradients(model, loss, exact.inputs, exact.targets)
    norms = rows[:3].norm(dim=1)
    norms[1] = 0
    members = torch.tensor([[1, 1, 0, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0, 1]]).double()
    queries = layers.batches(exact.subset(slice(3)), 2, CPU)
    blocks = list(found.values())[1:]
    gathered = gather(blocks, layers.batches(exact, 3, CPU), queries, members, norms)
    assert [part.factored for part in gathered] == blocks
    for part in gathered:
        expected = rotated(part.factored, matrices(part.factored.block, rows))
        torch.testing.assert_close(part.corrected, expected.square().mean(0), rtol=1e-9, atol=1e-20)
        sums = torch.einsum("sn,nrc->src", members, expected)
        assert (part.subset_sums - sums).norm() <= 1e-6 * sums.norm()
        units = expected[:3] / torch.tensor([norms[0], 1.0, norms[2]])[:, None, None]
        assert (part.queries - units).norm() <= 1e-6 * units.norm()
        assert part.eigenvalues[EKFAC] is part.corrected
        assert part.eigenvalues[KFAC].shape == part.corrected.shape


def test_the_corrected_eigenvalues_have_the_trace_of_the_fisher_of_the_block():
    model, loss, examples = make_case("lr")
    found, layers, exact = fitted(model, loss, examples)
    rows = one_by_one_gradients(model, loss, exact.inputs, exact.targets)
    (part,) = gather(
        list(found.values()), layers.batches(exact, 3, CPU), [], torch.zeros(0, len(exact)).double(), torch.zeros(0)
    )
    assert part.corrected.sum().item() == pytest.approx(rows.square().sum(1).mean().item(), rel=1e-12)


def test_groups_keep_the_order_and_the_memory(monkeypatch):
    found, _, _ = fitted(*make_case("mlp"))
    blocks = list(found.values())
    assert groups(blocks, 5, 10) == [blocks]
    monkeypatch.setattr(coordinates, "COORDINATE_BYTES", 100 * (128 * 785))
    assert groups(blocks, 5, 10) == [blocks[:1], blocks[1:]]
    monkeypatch.setattr(coordinates, "COORDINATE_BYTES", 1)
    assert groups(blocks, 5, 10) == [[block] for block in blocks]
