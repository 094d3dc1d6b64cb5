from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.gradients.sample_level import SampleLevel, SingleSample

SAMPLES, WIDTH = 4, 3


@pytest.mark.parametrize("is_unsaved", [True, False])
@pytest.mark.parametrize("shape", [(1, WIDTH), (WIDTH,), (1, 5, WIDTH)])
def test_the_error_of_an_output_stays_right_when_the_output_and_views_of_it_are_changed_in_place(is_unsaved, shape):
    torch.manual_seed(0)
    weight = torch.randn(6, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    places = []

    def rest(output):
        output.mul_(2)
        output[..., :2] *= 3
        output.view(-1)[:2].add_(1)
        output.relu_()
        return (output**3).sum()

    def one(values):
        output, place = SampleLevel(SAMPLES).followed(F.linear(values, weight), is_unsaved)
        places.append(place)
        return rest(output)

    total = torch.func.vmap(one)(inputs).sum()
    (found,) = (p.error(g) for p, g in zip(places, torch.autograd.grad(total, [p.at for p in places]), strict=True))
    outputs = F.linear(inputs, weight).detach().requires_grad_()
    (expected,) = torch.autograd.grad(sum(rest(output.clone()) for output in outputs), outputs)
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_output_that_is_the_same_for_all_samples_has_an_error_for_each():
    table = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(SAMPLES, WIDTH, dtype=torch.float64)
    places = []

    def one(values):
        output, place = SampleLevel(SAMPLES).followed(F.embedding(torch.tensor([1, 3]), table), is_unsaved=True)
        places.append(place)
        return (output * values).sum()

    total = torch.func.vmap(one)(inputs).sum()
    (derivative,) = torch.autograd.grad(total, [places[0].at])
    assert torch.equal(places[0].error(derivative), inputs[:, None].expand(-1, 2, -1))


def test_an_output_on_which_the_loss_does_not_depend_has_errors_of_zero():
    places = []

    def one(values):
        output, place = SampleLevel(SAMPLES).followed(values * 2, is_unsaved=True)
        places.append(place)
        return output

    torch.func.vmap(one)(torch.randn(SAMPLES, WIDTH, requires_grad=True))
    assert torch.equal(places[0].error(None), torch.zeros(SAMPLES, WIDTH))


def test_without_vmap_a_single_sample_is_a_batch_of_one():
    torch.manual_seed(0)
    weight = torch.randn(6, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs, level = torch.randn(5, WIDTH, dtype=torch.float64), SingleSample()
    assert level.is_current()
    for is_unsaved in (True, False):
        output, place = level.followed(F.linear(inputs, weight), is_unsaved)
        (derivative,) = torch.autograd.grad((output.mul_(2) ** 3).sum(), [place.at])
        expected = 24 * F.linear(inputs, weight).square()
        torch.testing.assert_close(place.error(derivative), expected[None], rtol=1e-12, atol=1e-12)
