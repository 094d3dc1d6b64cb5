"""Attention and cross-entropy of all samples at once against torch's own, sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.gradients.all_at_once import attention_of_all, cross_entropy_of_all
from common.gradients.sample_level import SampleLevel

SAMPLES, LENGTH, WIDTH = 4, 5, 6
SHAPES = {
    "batch of one": ((1, 2), (1, 2)),
    "without a batch": ((2,), (2,)),
    "positions alone": ((), ()),
    "folded windows": ((3, 2), (3, 2)),
    "two batches": ((2, 3, 2), (2, 3, 2)),
    "grouped heads": ((1, 4), (1, 2)),
}
MASKS = {
    "none": lambda shape: None,
    "same for all samples": lambda shape: torch.rand(LENGTH, LENGTH) < 0.7,
    "one a sample": lambda shape: torch.rand(SAMPLES, *[1] * len(shape), 1, LENGTH) < 0.7,
    "of numbers": lambda shape: torch.randn(SAMPLES, *shape, LENGTH, LENGTH, dtype=torch.float64),
    "without leading dimensions": lambda shape: torch.randn(SAMPLES, LENGTH, LENGTH, dtype=torch.float64),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_derivatives_are_those_of_each_sample_alone(shape, mask):
    torch.manual_seed(0)
    (many, few), settings = SHAPES[shape], {"enable_gqa": shape == "grouped heads", "scale": 0.3}
    query = torch.randn(SAMPLES, *many, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(SAMPLES, *few, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    given = MASKS[mask](many)
    if given is not None and given.dtype == torch.bool:
        given[..., 0] = True  # a position that sees nothing has no attention
    by_sample = 0 if given is not None and mask != "same for all samples" else None

    def one(*inputs):
        return attention_of_all(SampleLevel(SAMPLES), *inputs, **settings)

    found = torch.func.vmap(one, in_dims=(0, 0, 0, by_sample))(query, key, value, given)
    masks = [given if by_sample is None else given[i] for i in range(SAMPLES)]
    expected = torch.stack(
        [F.scaled_dot_product_attention(query[i], key[i], value[i], masks[i], **settings) for i in range(SAMPLES)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights, inputs = torch.randn_like(expected), (query, key, value)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        rtol=1e-11,
        atol=1e-11,
    )


def test_a_causal_mask_is_passed_on():
    inputs = torch.randn(3, SAMPLES, 1, 2, LENGTH, WIDTH, dtype=torch.float64)
    found = torch.func.vmap(lambda *one: attention_of_all(SampleLevel(SAMPLES), *one, is_causal=True))(*inputs)
    expected = F.scaled_dot_product_attention(*inputs.squeeze(2), is_causal=True)
    torch.testing.assert_close(found.squeeze(1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"ignore_index": 2}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("shape", [(1, WIDTH), (1, WIDTH, LENGTH), (3, WIDTH)])
@pytest.mark.parametrize("kind", ["labels", "probabilities", "same labels"])
def test_losses_and_derivatives_are_those_of_each_sample_alone(shape, kind, settings):
    if kind == "probabilities" and "ignore_index" in settings:
        pytest.skip("probabilities have no index")
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, *shape, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(WIDTH, (SAMPLES, shape[0], *shape[2:]))
    if kind == "probabilities":
        targets = torch.softmax(torch.randn(SAMPLES, *shape, dtype=torch.float64), 2)
    by_sample = None if kind == "same labels" else 0

    def one(values, target):
        return cross_entropy_of_all(SampleLevel(SAMPLES), values, target, reduction="none", **settings)

    found = torch.func.vmap(one, in_dims=(0, by_sample))(inputs, targets[0] if by_sample is None else targets)
    alone = [targets[0]] * SAMPLES if by_sample is None else targets
    expected = [F.cross_entropy(x, t, reduction="none", **settings) for x, t in zip(inputs, alone, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((torch.stack(expected) * weights).sum(), inputs),
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize("settings", [{}, {"reduction": "sum"}, {"reduction": "none", "weight": torch.ones(WIDTH)}])
def test_what_is_no_loss_of_its_own_for_each_row_is_left_to_torch(settings):
    def one(values, target):
        assert cross_entropy_of_all(SampleLevel(SAMPLES), values, target, **settings) is None
        return values

    torch.func.vmap(one)(torch.randn(SAMPLES, 1, WIDTH), torch.zeros(SAMPLES, 1, dtype=torch.int64))


def test_attention_with_dropout_is_left_to_torch():
    def one(*inputs):
        assert attention_of_all(SampleLevel(SAMPLES), *inputs, dropout_p=0.5) is None
        return inputs[0]

    torch.func.vmap(one)(*torch.randn(3, SAMPLES, 1, LENGTH, WIDTH))
