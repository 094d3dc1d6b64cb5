from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.gradients.layer_readers import READERS
from tests.layer_cases import SAME_EVEN_KERNEL

pytestmark = SAME_EVEN_KERNEL


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
    layer, images = nn.Conv2d(2, 3, (2, 3), bias=False, **options), torch.randn(1, 2, 6, 7)
    reading = READERS[F.conv2d](
        images, layer.weight, None, *(getattr(layer, n) for n in ("stride", "padding", "dilation"))
    )
    products = layer.weight.flatten(1) @ reading.setting.patches(images)
    torch.testing.assert_close(products, layer(images).flatten(2))


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("btc,cr->btr", (4, 6)),
        ("btc, rc -> btr", (6, 4)),
        ("btc,rc->rbt", (6, 4)),
        ("btc,rct->br", (6, 4, 5)),
        ("btc,hcd->bthd", (2, 4, 3)),
    ],
)
def test_an_equation_is_a_linear_map_only_where_rows_and_columns_of_the_weight_stand_together(equation, shape):
    inputs, weight = torch.randn(2, 5, 4), torch.randn(shape)
    reading = READERS[torch.einsum](equation, inputs, weight)
    if shape == (2, 4, 3):
        assert reading is None
        return
    order, output = reading.setting, torch.einsum(equation, inputs, weight)
    inputs, output = inputs.permute(order.input_dims), output.permute(order.error_dims)
    cols, rows = (
        values.shape[values.ndim - n :].numel() for values, n in zip((inputs, output), order.features, strict=True)
    )
    matrix = weight.reshape(cols, rows) if order.transposed else weight.reshape(rows, cols).T
    torch.testing.assert_close(inputs.reshape(-1, cols) @ matrix, output.reshape(-1, rows))


@pytest.mark.parametrize(
    "equation", ["btc,btc->bt", "btc,tcr->btr", "btc,cr", "...c,cr->...r", "bcc,cr->br", "btc,cr->br"]
)
def test_other_equations_are_left_to_autograd(equation):
    assert READERS[torch.einsum](equation, torch.randn(2, 4, 4), torch.randn(4, 4)) is None


def test_a_weight_whose_first_two_dimensions_belong_together_is_no_matrix_of_its_first_one():
    assert READERS[torch.einsum]("bthd,hdc->btc", torch.randn(2, 5, 3, 4), torch.randn(3, 4, 6)) is None
    assert READERS[torch.einsum]("btc,hdc->bthd", torch.randn(2, 5, 6), torch.randn(3, 4, 6)) is None


def test_a_call_in_training_mode_or_with_a_changed_table_is_left_to_autograd():
    statistics = torch.zeros(3), torch.ones(3)
    assert READERS[F.batch_norm](torch.randn(2, 3), *statistics, training=True) is None
    assert READERS[F.embedding](torch.tensor([1]), torch.randn(3, 2), scale_grad_by_freq=True) is None
    assert READERS[F.embedding](torch.tensor([1]), torch.randn(3, 2), max_norm=1.0) is None
    assert READERS[torch.addmm](torch.randn(3), torch.randn(2, 4), torch.randn(4, 3), alpha=2) is None
