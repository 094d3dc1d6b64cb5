from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors, flat_parameters, squares_by_grams
from common.gradients.layer_shares import Linear, Lookup
from common.gradients.planning import plan_gradients
from common.workloads.records import Examples
from common.workloads.training import fresh_model
from tests import gradients
from tests.gradient_cases import CPU, reference_rows
from tests.layer_cases import SAME_EVEN_KERNEL, make_case
from tests.layer_kinds import LAYER_BY_LAYER, LOOKUPS, loss, make_kind
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import batch_norm_perceptron, tiny_workload


def exact(examples):
    inputs = examples.inputs
    return Examples(inputs.double() if inputs.is_floating_point() else inputs, examples.targets)


def flat_rows(factors, shares, count):
    last = factors.parameters[-1]
    rows = torch.zeros(count, last.columns.stop, dtype=factors.dtype)
    for share in shares:
        rows[:, share.parameter.columns] = share.dense().flatten(1)
    return rows


def assert_same_lengths(shares):
    for share in shares:
        expected = share.dense().double().square().sum((1, 2))
        torch.testing.assert_close(share.squared_norms(), expected, rtol=1e-10, atol=0)


def assert_same_rows(model, loss, examples, routes=None):
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    factors = LayerFactors(model.double(), loss, routes or Routes())
    shares = list(factors(exact(examples)))
    assert_same_lengths(shares)
    found = flat_rows(factors, shares, len(examples))
    assert expected.norm(dim=1).any()
    assert ((found - expected).norm(dim=1) <= 1e-12 * expected.norm(dim=1)).all()


def shares_of(model, loss, examples, routes=None):
    return {share.parameter.name: share for share in LayerFactors(model, loss, routes or Routes())(examples)}


@pytest.mark.parametrize("name", [*LAYER_BY_LAYER, *LOOKUPS])
def test_factors_multiply_out_to_the_gradients_of_one_by_one_backward_passes(name):
    model, examples = make_kind(name)
    assert_same_rows(model, loss, examples)


@SAME_EVEN_KERNEL
@pytest.mark.parametrize(
    "name", ["conv", "transformer_every_token", "tied_weights", "repeated_layer", "repeated_conv", "folded_sequence"]
)
def test_whole_models_and_shared_parameters_have_these_factors_too(name):
    model, case_loss, examples = make_case(name)
    assert_same_rows(model, case_loss, examples.subset(slice(3)))


@pytest.mark.parametrize("name", ["gpt2_conv1d", "tied_autoencoder", "lora_fp16base", "groupnorm_depthwise"])
def test_models_of_users_have_these_factors_on_the_routes_that_were_chosen(name):
    with torch.random.fork_rng():
        workload = importlib.import_module(f"{gradients.__name__}.cases.{name}").make_workload()
        model = fresh_model(workload, 0).eval()
    samples = workload.train.subset(slice(8))
    plan = plan_gradients(workload, model, [("training", samples)], 8, None, torch.float32, CPU)
    expected = one_by_one_gradients(plan.model, workload.loss, plan.examples.inputs, plan.examples.targets)
    factors = LayerFactors(plan.model, workload.loss, plan.routes)
    found = flat_rows(factors, factors(plan.examples), len(samples)).double()
    assert ((found - expected).norm(dim=1) <= 2e-6 * expected.norm(dim=1)).all()


@SAME_EVEN_KERNEL
def test_linear_convolution_and_lookup_keep_factors_and_vectors_are_rows():
    model, case_loss, examples = make_case("conv")
    parameters = dict(model.named_parameters())
    for name, share in shares_of(model, case_loss, examples.subset(slice(2))).items():
        assert share.parameter.is_matrix == (parameters[name].ndim > 1)
        assert bool(share.factors) == share.parameter.is_matrix
        assert (share.rest is None) == share.parameter.is_matrix
    tied = shares_of(*make_case("tied_weights"))["tokens.weight"]
    assert {type(pair) for pair in tied.factors} == {Lookup, Linear}


@pytest.mark.parametrize("name", ["tied_weights", "repeated_tokens", "transformer_every_token"])
def test_lengths_by_inner_products_of_factors_are_those_of_the_products(name):
    model, case_loss, examples = make_case(name)
    shares = [share for share in shares_of(model, case_loss, examples).values() if share.factors]
    assert shares
    for share in shares:
        expected = dataclasses.replace(share, rest=None).dense().double().square().sum((1, 2))
        torch.testing.assert_close(squares_by_grams(share.factors), expected, rtol=1e-5, atol=1e-12)


def test_a_weight_kept_transposed_has_its_inputs_on_the_side_of_the_rows():
    workload = importlib.import_module(f"{gradients.__name__}.cases.gpt2_conv1d").make_workload()
    model = workload.make_model().eval()
    share = shares_of(model, workload.loss, workload.train.subset(slice(2)))["h.f.weight"]
    (pair,) = share.factors
    assert (share.parameter.rows, share.parameter.cols) == (8, 32)
    assert (pair.errors.shape, pair.inputs.shape) == ((2, 12, 8), (2, 12, 32))


def test_a_parameter_that_no_layer_explains_comes_as_gradients():
    model, case_loss, examples = make_case("tied_weights")
    share = shares_of(model, case_loss, examples, Routes(one_at_a_time={"tokens.weight": ""}))["tokens.weight"]
    assert share.factors == ()
    assert share.rest.shape == (len(examples), 11, 6)


def test_batches_cover_all_samples_once_in_order():
    torch.manual_seed(0)
    model = batch_norm_perceptron().eval()
    workload = tiny_workload()
    factors = LayerFactors(model.double(), workload.loss, Routes())
    batches = list(factors.batches(exact(workload.train), 7, CPU))
    found = torch.cat([flat_rows(factors, shares, rows.stop - rows.start) for rows, shares in batches])
    assert [rows.start for rows, _ in batches] == list(range(0, len(workload.train), 7))
    expected = reference_rows(model, [("training", workload.train)])
    assert (found - expected).norm() < 1e-12 * expected.norm()


def test_columns_of_the_parameters_follow_one_another():
    model, _, _ = make_case("transformer")
    parameters = flat_parameters(model)
    ends = [parameter.columns.stop for parameter in parameters]
    assert [parameter.start for parameter in parameters] == [0, *ends[:-1]]
    assert ends[-1] == sum(p.numel() for p in model.parameters() if p.requires_grad)
