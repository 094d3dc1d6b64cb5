from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.gradients.layer_calls import CallRecorder
from tests.layer_cases import SAME_EVEN_KERNEL

pytestmark = SAME_EVEN_KERNEL


class Uses(nn.Module):
    """One matrix, used as the test says."""

    def __init__(self, use):
        super().__init__()
        self.matrix, self.use = nn.Parameter(torch.randn(6, 4)), use

    def forward(self, x):
        return self.use(self.matrix, x)


def record(model, *shape):
    recorder = CallRecorder(model)
    with recorder:
        model(torch.randn(*shape))
    return recorder


def test_calls_are_listed_in_order_with_the_trainable_parameters_they_use():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    recorder = record(model.eval(), 4, 2, 3, 3)
    assert recorder.unknown == {}
    assert recorder.signature() == (
        ("conv", "0.weight", None),
        ("batch_norm", None, "1.bias"),
        ("linear", "4.weight", "4.bias"),
    )


def test_the_last_rows_of_a_parameter_keep_their_place_in_it():
    for use in (
        lambda w, x: F.linear(x, w[3:]),
        lambda w, x: F.linear(x, w[1:][2:, :]),
        lambda w, x: F.linear(x, w[-3:]),
    ):
        recorder = record(Uses(use), 2, 4)
        assert [(call.weight, call.setting) for call in recorder.calls] == [("matrix", 3)]
        assert recorder.unknown == {}


@pytest.mark.parametrize(
    ("use", "function"),
    [
        (lambda w, x: x @ w.t(), "t"),
        (lambda w, x: F.linear(x, w[:3]), "__getitem__"),
        (lambda w, x: F.linear(x, w * 2), "mul"),
        (lambda w, x: F.embedding(torch.tensor([0, 1]), w, scale_grad_by_freq=True), "embedding"),
        (lambda w, x: F.layer_norm(x.new_ones(2, 6, 4), (6, 4), w), "layer_norm"),
    ],
)
def test_a_use_that_cannot_be_followed_names_its_parameter_and_function(use, function):
    recorder = record(Uses(use), 2, 4)
    assert recorder.unknown == {"matrix": f"it is used by {function} in a way that is not supported"}


def test_a_use_without_gradient_does_not_count():
    recorder = record(Uses(lambda w, x: F.linear(x * w.detach().norm(), w)), 2, 4)
    assert recorder.unknown == {}


@pytest.mark.parametrize(
    "options",
    [
        dict(padding=2, stride=(2, 1)),
        dict(padding=(0, 1), dilation=(1, 2)),
        dict(padding="same", dilation=(1, 2)),
        dict(padding="valid", stride=2),
    ],
    ids=str,
)
def test_a_convolution_is_its_kernel_times_the_patches(options):
    torch.manual_seed(0)
    layer, images = nn.Conv2d(2, 3, (2, 3), bias=False, **options), torch.randn(4, 2, 6, 7)
    recorder = CallRecorder(layer)
    with recorder:
        outputs = layer(images)
    (call,) = recorder.calls
    products = layer.weight.flatten(1) @ call.setting.patches(images)
    torch.testing.assert_close(products, outputs.flatten(2))
