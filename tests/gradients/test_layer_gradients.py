from __future__ import annotations

import copy

import pytest
import torch

from common.gradients.layer_capture import Routes
from common.gradients.layer_gradients import LayerwiseGradients, RowGradients
from common.workloads.losses import cross_entropy
from common.workloads.precision import match_inputs
from common.workloads.records import Examples
from tests.layer_cases import CASES, SAME_EVEN_KERNEL, make_case
from tests.reference_gradients import one_by_one_gradients

pytestmark = SAME_EVEN_KERNEL

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def largest_relative_row_error(found, expected):
    return ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_one_by_one_backward_passes(name, dtype):
    model, loss, examples = make_case(name)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    examples = match_inputs(examples, dtype)
    gradients = RowGradients(model.to(dtype), loss, Routes())
    found = gradients(examples)
    assert found.dtype == dtype
    assert largest_relative_row_error(found, expected) < TOLERANCE[dtype]
    out = torch.full_like(found, 5.0)
    assert gradients(examples, out=out) is out
    assert torch.equal(out, found)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0], ids=["one_pass", "some_passes", "a_pass_a_row"])
@pytest.mark.parametrize(
    "name", ["mlp", "few_positions", "conv", "transformer", "tied_weights", "repeated_tokens", "repeated_conv"]
)
def test_gram_and_column_blocks_equal_the_multiplied_out_ones(name, share):
    if share == 0 and name in ("mlp", "transformer", "tied_weights"):
        pytest.skip("thousands of passes; the smaller models show the same")
    model, loss, examples = make_case(name)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    whole = LayerwiseGradients(model, loss, examples, batch_size=3, dtype=torch.float64)
    memory_bytes = 1 + int(share * whole.kept_bytes)
    gradients = LayerwiseGradients(model, loss, examples, batch_size=3, dtype=torch.float64, memory_bytes=memory_bytes)
    assert whole.num_passes == 1
    assert (gradients.num_passes > 1) == (share < 1)
    assert (gradients.num_rows, gradients.dim) == expected.shape
    unit_gram, norms = gradients.gram(block_bytes=50_000)
    unit = expected / expected.norm(dim=1, keepdim=True)
    assert (norms / expected.norm(dim=1) - 1).abs().max() < 1e-10
    assert (unit_gram - unit @ unit.T).abs().max() < 1e-10
    assert torch.equal(unit_gram, unit_gram.T)
    starts, blocks = zip(*gradients.column_blocks(max_bytes=50_000), strict=True)
    widths = torch.tensor([block.shape[1] for block in blocks])
    assert list(starts) == [0, *widths.cumsum(0)[:-1].tolist()]
    assert largest_relative_row_error(torch.cat(blocks, dim=1), expected) < 1e-10
    some = torch.tensor([3, 0, 2])
    for dtype in TOLERANCE:
        rows = gradients.rows_of(some, dtype)
        assert rows.dtype == dtype
        assert largest_relative_row_error(rows, expected[some]) < TOLERANCE[dtype]


def test_what_a_pass_keeps_stays_within_the_memory_asked_for():
    model, loss, examples = make_case("transformer")
    for memory_bytes in (100_000, 1_000_000):
        gradients = LayerwiseGradients(model, loss, examples, memory_bytes=memory_bytes)
        assert gradients.kept_bytes <= memory_bytes
        assert all(block.nbytes <= 20_000 for _, block in gradients.column_blocks(max_bytes=20_000))


def test_one_pass_is_kept_and_never_repeated():
    model, loss, examples = make_case("conv")
    gradients = LayerwiseGradients(model, loss, examples)
    first, _ = gradients.gram()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(gradients.gram()[0], first)


def test_norms_ten_orders_of_magnitude_apart_lose_no_accuracy():
    model, _, examples = make_case("mlp")
    scales = torch.logspace(-10, 0, len(examples), dtype=torch.float64)
    targets = torch.arange(len(examples))

    def scaled_loss(outputs, indices):
        return cross_entropy(outputs, indices % 10) * scales.to(outputs.dtype)[indices]

    expected = one_by_one_gradients(model, scaled_loss, examples.inputs, targets)
    scaled = Examples(examples.inputs, targets)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        unit_gram, norms = LayerwiseGradients(model, scaled_loss, scaled, dtype=dtype).gram()
        unit = expected / expected.norm(dim=1, keepdim=True)
        assert (norms / expected.norm(dim=1) - 1).abs().max() < tolerance
        assert (unit_gram - unit @ unit.T).abs().max() < tolerance


def test_a_zero_gradient_gives_a_zero_row_and_others_are_untouched():
    model, _, examples = make_case("mlp")
    examples = Examples(examples.inputs, torch.arange(len(examples)))

    def loss_of_all_but_the_second(outputs, indices):
        return cross_entropy(outputs, indices % 10) * (indices != 1)

    unit_gram, norms = LayerwiseGradients(model, loss_of_all_but_the_second, examples).gram()
    assert norms[1] == 0
    assert (unit_gram[1] == 0).all()
    assert (norms[[0, 2, 3, 4, 5, 6]] > 0).all()


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_non_finite_gradients_are_passed_on_for_their_sample_only(name):
    model, loss, examples = make_case(name)
    inputs = examples.inputs.clone()
    inputs[1] = float("inf")
    found = RowGradients(model, loss, Routes())(Examples(inputs, examples.targets))
    finite = found.isfinite().all(dim=1)
    assert finite.tolist() == [index != 1 for index in range(len(inputs))]
    unit_gram, norms = LayerwiseGradients(model, loss, Examples(inputs, examples.targets)).gram()
    assert norms.isfinite().tolist() == finite.tolist()
    assert unit_gram[finite][:, finite].isfinite().all()


def test_frozen_parameters_have_no_columns():
    model, loss, examples = make_case("mlp")
    model.fc1.weight.requires_grad_(False)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    gradients = LayerwiseGradients(model, loss, examples, dtype=torch.float64)
    found = torch.cat([block for _, block in gradients.column_blocks()], dim=1)
    assert gradients.dim == expected.shape[1]
    assert largest_relative_row_error(found, expected) < 1e-10


def test_the_model_is_left_as_it_was():
    model, loss, examples = make_case("conv")
    before = copy.deepcopy(model.state_dict())
    LayerwiseGradients(model, loss, examples, dtype=torch.float64).gram()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_single_sample_is_enough():
    model, loss, examples = make_case("conv")
    unit_gram, _ = LayerwiseGradients(model, loss, examples.subset(slice(0, 1))).gram()
    assert unit_gram.tolist() == [[pytest.approx(1.0, abs=1e-12)]]
