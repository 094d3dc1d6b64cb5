from __future__ import annotations

import pytest
import torch
from torch import nn

from common.curvature import factors as curvature
from common.curvature.blocks import MATRIX, VECTOR, find_blocks
from common.curvature.factors import Side, fit
from common.foundations.errors import UserError
from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.layer_cases import SAME_EVEN_KERNEL, make_case
from tests.reference_gradients import one_by_one_gradients

CPU = torch.device("cpu")


def fitted(model, loss, examples, routes=None):
    """Return the fitted blocks by name, from batches of 3 samples, and the float64 factors and examples used."""
    layers = LayerFactors(model.double(), loss, routes or Routes())
    inputs = examples.inputs
    exact = Examples(inputs.double() if inputs.is_floating_point() else inputs, examples.targets)
    blocks = find_blocks(list(layers(exact)))
    found = fit(blocks, layers.batches(exact, 3, CPU), len(exact), CPU)
    return {factored.block.name: factored for factored in found}, layers, exact


def dense(side: Side) -> torch.Tensor:
    if side.basis is None:
        return torch.diag(side.eigenvalues)
    return (side.basis * side.eigenvalues) @ side.basis.T


def close(found, expected):
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_the_factors_of_a_logistic_regression_are_moments_of_its_inputs_and_of_its_residuals():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    examples = Examples(torch.randn(8, 4).double(), torch.randint(0, 3, (8,)))
    found, _, _ = fitted(model, cross_entropy, examples)
    (factored,) = found.values()
    inputs = torch.cat([examples.inputs, torch.ones(8, 1)], 1)
    residuals = model(examples.inputs).softmax(1) - torch.eye(3)[examples.targets]
    close(dense(factored.a), inputs.T @ inputs / 8)
    close(dense(factored.e), residuals.T @ residuals / 8)
    assert factored.positions == 1


def test_positions_are_summed_for_inputs_and_averaged_for_errors():
    model, loss, examples = make_case("transformer_every_token")
    found, layers, exact = fitted(model, loss, examples)
    (pair,) = next(s for s in layers(exact) if s.parameter.name == "Wout.weight").factors
    factored = found["Wout.weight"]
    inputs = torch.cat([pair.inputs, torch.ones(3, 16, 1)], 2).flatten(0, 1)
    errors = pair.errors.flatten(0, 1)
    close(dense(factored.a), inputs.T @ inputs / 3)
    close(dense(factored.e), errors.T @ errors / (3 * 16))
    assert factored.positions == 16


def test_a_looked_up_table_has_a_diagonal_factor_without_a_matrix():
    model, loss, examples = make_case("repeated_tokens")
    found, _, exact = fitted(model, loss, examples)
    side = found["tokens.weight"].e
    assert side.basis is None
    counts = torch.bincount(exact.inputs.flatten(), minlength=11).double()
    counts[0] = 0  # padding has no gradient
    close(side.eigenvalues, counts / counts.sum())


@SAME_EVEN_KERNEL
def test_a_vector_has_its_whole_matrix():
    model, loss, examples = make_case("conv")
    found, _, exact = fitted(model, loss, examples)
    rows = one_by_one_gradients(model, loss, exact.inputs, exact.targets)
    vectors = [factored for factored in found.values() if factored.block.kind == VECTOR]
    assert len(vectors) == 2
    for factored in vectors:
        own = rows[:, factored.block.weight.columns]
        close(dense(factored.e), own.T @ own / len(exact))
        assert factored.a.eigenvalues.tolist() == [1.0]


def test_a_matrix_without_a_layer_has_factors_from_its_gradients_with_the_trace_of_its_fisher():
    model, loss, examples = make_case("tied_weights")
    found, _, exact = fitted(model, loss, examples, Routes(one_at_a_time={"tokens.weight": ""}))
    factored = found["tokens.weight"]
    assert factored.block.kind == MATRIX
    own = one_by_one_gradients(model, loss, exact.inputs, exact.targets)[:, factored.block.weight.columns]
    matrices = own.view(-1, 11, 6)
    close(dense(factored.a), (matrices.transpose(1, 2) @ matrices).mean(0))
    close(dense(factored.e) * own.square().sum(), (matrices @ matrices.transpose(1, 2)).sum(0))
    assert factored.eigenvalues.sum().item() == pytest.approx(own.square().sum(1).mean().item(), rel=1e-12)


def test_what_other_samples_lack_is_no_position():
    torch.manual_seed(0)
    block = find_blocks(list(LayerFactors(*_two_tokens(2))(_tokens(2))))[0]
    long, short = (list(LayerFactors(*_two_tokens(2))(_tokens(length))) for length in (2, 1))
    padded = torch.nn.functional.pad
    (pair,) = short[0].factors
    missing = type(pair)(padded(pair.errors, (0, 0, 0, 1)), padded(pair.inputs, (0, 0, 0, 1)))
    batches = [
        (slice(0, 4), iter(long[:1])),
        (slice(4, 8), iter([type(short[0])(short[0].parameter, (missing,), None)])),
    ]
    (factored,) = fit([block], batches, 8, CPU)
    assert factored.positions == 1.5
    assert dense(factored.a)[-1, -1].item() == pytest.approx(1.5, rel=1e-12)


def _two_tokens(size):
    return nn.Linear(size, 3), lambda outputs, targets: cross_entropy(outputs.sum(1), targets), Routes()


def _tokens(length):
    return Examples(torch.randn(4, length, 2), torch.randint(0, 3, (4,)))


def test_sides_too_large_for_a_matrix_keep_their_diagonal(monkeypatch):
    model, loss, examples = make_case("mlp")
    full, _, _ = fitted(model, loss, examples)
    monkeypatch.setattr(curvature, "LARGEST_SIDE", 128)
    cut, _, _ = fitted(model, loss, examples)
    name = next(iter(full))
    assert cut[name].a.basis is None
    assert cut[name].e.basis is not None
    close(cut[name].a.eigenvalues, dense(full[name].a).diagonal())


def test_a_gradient_that_no_block_was_found_for_is_refused():
    model, loss, examples = make_case("lr")
    layers = LayerFactors(model, loss, Routes())
    with pytest.raises(UserError, match=r"linear\.weight has no gradient at the samples .* training samples 0 to 2"):
        fit([], layers.batches(examples, 3, CPU), len(examples), CPU)
